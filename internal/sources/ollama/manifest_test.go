package ollama

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func digestOf(c byte) string { return "sha256:" + strings.Repeat(string(c), 64) }

func layerJSON(kind, digest string, size int64) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, kind, digest, size)
}

func manifestJSON(config string, layers ...string) []byte {
	return []byte(`{"schemaVersion":2,"mediaType":"` + dockerManifest + `","config":` + config + `,"layers":[` + strings.Join(layers, ",") + `]}`)
}

func TestReadManifest(t *testing.T) {
	m, err := readManifest(manifestJSON(layerJSON("c", digestOf('c'), 7),
		layerJSON(kindModel, digestOf('a'), 100), layerJSON(kindTemplate+"; charset=utf-8", digestOf('b'), 5), layerJSON(kindLicense, digestOf('b'), 5)))
	if err != nil {
		t.Fatal(err)
	}
	if m.bytes() != 112 || len(m.files()) != 3 || len(m.of(kindTemplate)) != 1 {
		t.Errorf("%d bytes in %d files, templates %v", m.bytes(), len(m.files()), m.of(kindTemplate))
	}
	w, err := m.weights(Name{}, config{})
	if err != nil || w.path() != "blobs/sha256-"+strings.Repeat("a", 64) {
		t.Errorf("weights %v, %v", w, err)
	}
}

func TestReadManifestRefuses(t *testing.T) {
	good := layerJSON(kindModel, digestOf('a'), 1)
	conf := layerJSON("c", digestOf('c'), 7)
	for name, raw := range map[string][]byte{
		"nothing":          {},
		"a page":           []byte(" <!doctype html><title>Sign in</title>"),
		"no JSON":          []byte("manifest"),
		"another JSON":     []byte(`[]`),
		"no blobs":         []byte(`{"schemaVersion":2}`),
		"no digest":        manifestJSON(conf, layerJSON(kindModel, "", 1)),
		"another digest":   manifestJSON(conf, layerJSON(kindModel, "md5:"+strings.Repeat("a", 64), 1)),
		"a path as digest": manifestJSON(conf, layerJSON(kindModel, "sha256:../../../../etc/passwd", 1)),
		"upper case":       manifestJSON(conf, layerJSON(kindModel, digestOf('A'), 1)),
		"a negative size":  manifestJSON(conf, layerJSON(kindModel, digestOf('a'), -1)),
		"sizes that wrap":  manifestJSON(conf, layerJSON(kindModel, digestOf('a'), 1<<62), layerJSON(kindModel, digestOf('b'), 1<<62)),
		"two sizes of one": manifestJSON(conf, good, layerJSON(kindModel, digestOf('a'), 2)),
		"a list":           []byte(`{"schemaVersion":2,"manifests":[{"digest":"` + digestOf('a') + `"}]}`),
		"too many layers":  manifestJSON(conf, strings.TrimSuffix(strings.Repeat(good+",", maxLayers+1), ",")),
	} {
		if m, err := readManifest(raw); err == nil || registry.CodeOf(err) == registry.CodeInternal {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// TestWeights: a manifest without weights that an engine here can run says why, and what to do.
func TestWeights(t *testing.T) {
	conf := layerJSON("c", digestOf('c'), 7)
	name, err := ParseName("team/model:1")
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		raw  []byte
		conf config
		word string
	}{
		"cloud":       {manifestJSON(conf), config{RemoteHost: "https://ollama.com:443", RemoteModel: "x"}, "external_service"},
		"tensors":     {manifestJSON(conf, layerJSON(kindTensor, digestOf('a'), 1), layerJSON(kindTensor, digestOf('b'), 1)), config{}, "safetensors"},
		"safetensors": {manifestJSON(conf, layerJSON(kindModel, digestOf('a'), 1)), config{ModelFormat: "safetensors"}, "safetensors"},
		"two models":  {manifestJSON(conf, layerJSON(kindModel, digestOf('a'), 1), layerJSON(kindModel, digestOf('b'), 1)), config{}, "2 files"},
		"an adapter":  {manifestJSON(conf, layerJSON(kindAdapter, digestOf('a'), 1)), config{}, "adapter"},
		"an image":    {manifestJSON(conf, layerJSON("application/vnd.docker.image.rootfs.diff.tar.gzip", digestOf('a'), 1)), config{}, "ollama push"},
		"nothing":     {manifestJSON(conf, layerJSON(kindLicense, digestOf('a'), 1)), config{}, "no weights"},
	} {
		m, err := readManifest(c.raw)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		_, err = m.weights(name, c.conf)
		if registry.CodeOf(err) != registry.CodeUnsupported || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), "team/model:1") {
			t.Errorf("%s: %v; want unsupported, with %q", what, err, c.word)
		}
	}
}

func TestLicenceOf(t *testing.T) {
	for text, want := range map[string]string{
		"                                 Apache License\n                           Version 2.0, January 2004\n": "apache-2.0",
		"MIT License\n\nCopyright (c) 2025": "mit",
		"LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date: September 25, 2024": "llama3.2",
		"Gemma Terms of Use \n\nLast modified: February 21, 2024":                                   "gemma",
		"\n\n  House rules of ACME \n more":                                                         "House rules of ACME",
		"\x1b[31mred":                                                                               "[31mred",
		"":                                                                                          "",
		"\xff\xfe":                                                                                  "",
	} {
		if got := licenceOf(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestParameters(t *testing.T) {
	for in, want := range map[string]int64{"134.52M": 134_520_000, "70.6B": 70_600_000_000, "8B": 8_000_000_000, "1.04T": 1_040_000_000_000, "4.16K": 4160, "": 0, "many": 0, "-1B": 0, "1e9B": 0, "7b": 0, "99999B": 0} {
		if got := parameters(in); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}

func TestReadParams(t *testing.T) {
	got := strings.Join(readParams([]byte(`{"stop":["<|im_end|>","x"],"num_ctx":4096,"temperature":0.6}`)), ", ")
	if want := `num_ctx 4096, stop ["<|im_end|>","x"], temperature 0.6`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, raw := range []string{"", "[]", "null", "{"} {
		if got := readParams([]byte(raw)); len(got) != 0 {
			t.Errorf("%q: %v", raw, got)
		}
	}
}

// FuzzReadManifest: a manifest that is taken names blobs by digests only, so that no path leads out of the folder, and its
// sizes add up.
func FuzzReadManifest(f *testing.F) {
	conf := layerJSON("c", digestOf('c'), 7)
	f.Add(manifestJSON(conf, layerJSON(kindModel, digestOf('a'), 1)))
	f.Add(manifestJSON(conf, layerJSON(kindTensor, digestOf('a'), 1<<62)))
	f.Add([]byte(`{"manifests":[]}`))
	f.Add([]byte(`{"config":null,"layers":[{"digest":"sha256:..","size":-1}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := readManifest(raw)
		if err != nil {
			var e *registry.Error
			if !errors.As(err, &e) {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		if m.bytes() < 0 {
			t.Fatalf("%d bytes", m.bytes())
		}
		for _, file := range m.files() {
			if blob, part := blobOf(strings.TrimPrefix(file.Path, "blobs/")); part || "blobs/"+blob != file.Path || file.Size < 0 {
				t.Fatalf("the file %+v", file)
			}
		}
		_, _ = m.weights(Name{}, config{})
	})
}

// FuzzReadConfig: whatever a registry says of a model, and of its parameters and licence, becomes short lines.
func FuzzReadConfig(f *testing.F) {
	f.Add([]byte(`{"model_format":"gguf","file_type":"Q4_K_M","remote_host":"x"}`))
	f.Add([]byte(`{"stop":["a"],"num_ctx":1e999}`))
	f.Add([]byte("MIT License\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = readConfig(raw)
		for _, line := range append(readParams(raw), licenceOf(string(raw))) {
			if len(line) > 200 || strings.ContainsAny(line, "\n\r\x1b\x00") {
				t.Fatalf("the line %q", line)
			}
		}
	})
}
