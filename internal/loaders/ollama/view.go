package ollama

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
)

// A view is a folder of models, in Ollama's layout, with one model in it: links to the files of the weights, wherever they
// are, and the parameters that this instance has. Ollama asks nothing of a blob but its name, so that no byte is copied or
// hashed. ollama create, which is the usual way to a model out of a file, reads and writes all of it again since 0.30.

// makeView writes the view of a model. Doing it twice does no harm.
func makeView(models, name string, w weights, opts map[string]any, v params.Values) error {
	blobs := filepath.Join(models, "blobs")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	man := manifest{SchemaVersion: 2, MediaType: kindManifest}
	for _, ly := range w.layers {
		switch kind, _, _ := strings.Cut(ly.MediaType, ";"); {
		case kind == kindParams:
			own, err := readParams(ly.path)
			if err != nil {
				return err
			}
			maps.Copy(own, opts) // what the model's configuration says goes before what its maker said
			opts = own
			continue
		case kind == kindTemplate && v.String("template", "") != "", kind == kindSystem && v.String("system", "") != "":
			continue
		}
		if err := os.Symlink(ly.path, blobFile(blobs, ly.Digest)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		man.Layers = append(man.Layers, ly)
	}
	texts := map[string][]byte{kindTemplate: []byte(v.String("template", "")), kindSystem: []byte(v.String("system", ""))}
	var err error
	if texts[kindParams], err = json.Marshal(opts); err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(texts)) {
		if len(texts[kind]) == 0 {
			continue
		}
		ly, err := writeBlob(blobs, kind, texts[kind])
		if err != nil {
			return err
		}
		man.Layers = append(man.Layers, ly)
	}
	if w.config != nil {
		man.Config = *w.config
		if err := os.Symlink(w.config.path, blobFile(blobs, w.config.Digest)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else {
		text, err := json.Marshal(configOf(w.family))
		if err != nil {
			return err
		}
		if man.Config, err = writeBlob(blobs, kindConfig, text); err != nil {
			return err
		}
	}
	return writeManifest(models, name, man)
}

// configOf is what Ollama keeps beside a model: what it shows of it, and how it is stored.
func configOf(family string) map[string]any {
	c := map[string]any{"model_format": "gguf", "architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{}}}
	if family != "" {
		c["model_family"], c["model_families"] = family, []string{family}
	}
	return c
}

func blobFile(blobs, digest string) string {
	return filepath.Join(blobs, strings.Replace(digest, ":", "-", 1))
}

func writeBlob(blobs, kind string, content []byte) (layer, error) {
	ly := layer{MediaType: kind, Digest: digestOf(content), Size: int64(len(content))}
	ly.path = blobFile(blobs, ly.Digest)
	return ly, os.WriteFile(ly.path, content, 0o600)
}

// manifestFile is where Ollama looks for a name of two parts.
func manifestFile(models, name string) string {
	return filepath.Join(models, "manifests", "registry.ollama.ai", filepath.FromSlash(name), "latest")
}

func writeManifest(models, name string, man manifest) error {
	text, err := json.Marshal(man)
	if err != nil {
		return err
	}
	path := manifestFile(models, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// readParams reads the parameters that a model brings along.
func readParams(path string) (map[string]any, error) {
	raw, err := readSmall(path, 1<<20)
	if err != nil {
		return nil, err
	}
	out := map[string]any{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber() // so that a large seed stays what it is
	if err := dec.Decode(&out); err != nil || out == nil {
		return nil, fmt.Errorf("%s, the parameters of the model, is not the JSON that was expected", path)
	}
	return out, nil
}
