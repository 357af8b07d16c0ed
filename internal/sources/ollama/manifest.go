package ollama

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Limits on what a registry sends, so that a wrong one cannot fill the memory.
const (
	maxManifest = 4 << 20 // bytes; the limit of the OCI specification
	maxLayers   = 20_000  // tensors of a large safetensors model are a layer each
	maxConfig   = 1 << 20 // bytes
	maxText     = 256 << 10
)

// What a layer may be. Ollama gives every kind of content a media type of its own.
const (
	kindModel     = "application/vnd.ollama.image.model"
	kindProjector = "application/vnd.ollama.image.projector"
	kindAdapter   = "application/vnd.ollama.image.adapter"
	kindDraft     = "application/vnd.ollama.image.draft"
	kindTemplate  = "application/vnd.ollama.image.template"
	kindPrompt    = "application/vnd.ollama.image.prompt" // the template of years ago
	kindSystem    = "application/vnd.ollama.image.system"
	kindParams    = "application/vnd.ollama.image.params"
	kindMessages  = "application/vnd.ollama.image.messages"
	kindLicense   = "application/vnd.ollama.image.license"
	kindTensor    = "application/vnd.ollama.image.tensor"
	kindPrefix    = "application/vnd.ollama.image."
)

// The media types of manifests: Ollama's own registry knows the first, newer registries also the second.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
)

// layer is one blob of a manifest.
type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	From      string `json:"from,omitempty"`
}

// path is where Ollama keeps the blob, relative to the folder of models.
func (l layer) path() string { return "blobs/" + l.file() }

func (l layer) file() string { return strings.Replace(l.Digest, ":", "-", 1) }

func (l layer) sum() string { return strings.TrimPrefix(l.Digest, "sha256:") }

// manifest says which blobs a model is made of.
type manifest struct {
	raw    []byte // as the registry signed it: its digest is taken over these bytes
	digest string // sha256:<hex>

	MediaType string          `json:"mediaType"`
	Config    layer           `json:"config"`
	Layers    []layer         `json:"layers"`
	Manifests json.RawMessage `json:"manifests"` // of a list of manifests for several platforms
}

// readManifest reads a manifest and checks everything in it that is used later.
func readManifest(raw []byte) (*manifest, error) {
	sum := sha256.Sum256(raw)
	m := &manifest{raw: raw, digest: "sha256:" + hex.EncodeToString(sum[:])}
	wrong := func(format string, args ...any) error {
		return headers.Corrupt("Ask whoever keeps the registry, or pull the model again if it was found on this machine",
			"the manifest makes no sense: %s", fmt.Sprintf(format, args...))
	}
	if start := bytes.TrimSpace(raw); len(start) > 0 && start[0] == '<' {
		return nil, headers.Corrupt("Check the registry's address: what answers there is no registry, or a proxy in between wants to be logged in to",
			"the registry answered with a web page instead of a manifest")
	}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, wrong("it is not the JSON that was expected")
	}
	if len(m.Manifests) > 0 && string(m.Manifests) != "null" {
		return nil, registry.Errorf(registry.CodeUnsupported, "this is a list of container images for several platforms, not a model in Ollama's format; push the model with ollama push")
	}
	if len(m.Layers) == 0 && m.Config.Digest == "" {
		return nil, wrong("it names no blobs")
	}
	if len(m.Layers) > maxLayers {
		return nil, wrong("it names %d layers; at most %d make sense", len(m.Layers), maxLayers)
	}
	sizes, sum64 := map[string]int64{}, int64(0)
	for _, l := range m.blobs() {
		switch size, seen := sizes[l.Digest]; {
		case !isDigest(l.Digest):
			return nil, wrong("a layer has the digest %s; sha256 and 64 lower-case hexadecimal digits were expected", quote(l.Digest))
		case l.Size < 0 || l.Size > math.MaxInt64-sum64:
			return nil, wrong("the layer %s claims %d bytes", l.Digest, l.Size)
		case seen && size != l.Size:
			return nil, wrong("the layer %s is there with two sizes", l.Digest)
		case !seen:
			sizes[l.Digest] = l.Size
			sum64 += l.Size
		}
	}
	return m, nil
}

// blobs returns every layer and the configuration, in the manifest's order.
func (m *manifest) blobs() []layer {
	out := slices.Clone(m.Layers)
	if m.Config.Digest != "" {
		out = append(out, m.Config)
	}
	return out
}

// files returns the blobs, each once.
func (m *manifest) files() []registry.File {
	seen := map[string]bool{}
	var out []registry.File
	for _, l := range m.blobs() {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			out = append(out, registry.File{Path: l.path(), Size: l.Size, SHA256: l.sum()})
		}
	}
	return out
}

func (m *manifest) bytes() int64 {
	var n int64
	for _, f := range m.files() {
		n += f.Size
	}
	return n
}

func (m *manifest) of(kind string) []layer {
	var out []layer
	for _, l := range m.Layers {
		// A media type may carry parameters after a semicolon.
		if t, _, _ := strings.Cut(l.MediaType, ";"); t == kind {
			out = append(out, l)
		}
	}
	return out
}

// weights returns the layer that holds the model, or says why there is none that an engine of ours reads.
func (m *manifest) weights(name Name, c config) (layer, error) {
	unsupported := func(format string, args ...any) error {
		return registry.Errorf(registry.CodeUnsupported, "%s %s", name, fmt.Sprintf(format, args...))
	}
	models := m.of(kindModel)
	switch {
	case c.RemoteHost != "":
		return layer{}, cloudOnly(name)
	case len(m.of(kindTensor)) > 0 || c.ModelFormat == "safetensors":
		return layer{}, unsupported("is kept as safetensors tensors, which only Ollama's MLX engine on Apple hardware runs; take a GGUF tag of the model, or register it with source_type huggingface")
	case len(models) == 1:
		return models[0], nil
	case len(models) > 1:
		return layer{}, unsupported("is split into %d files of weights, which no engine can read from Ollama's library; take another tag, or register it with source_type huggingface", len(models))
	case len(m.of(kindAdapter)) > 0:
		return layer{}, unsupported("holds an adapter without the model that it changes; take a tag that holds the whole model")
	}
	kinds := map[string]bool{}
	for _, l := range m.Layers {
		if !strings.HasPrefix(l.MediaType, kindPrefix) {
			kinds[clip(l.MediaType)] = true
		}
	}
	if len(kinds) > 0 {
		return layer{}, unsupported("is not in Ollama's format: its layers are %s; push the model with ollama push", headers.Some(slices.Sorted(maps.Keys(kinds))))
	}
	return layer{}, unsupported("holds no weights; take another tag of the model")
}

func cloudOnly(name Name) error {
	return registry.Errorf(registry.CodeUnsupported, "%s runs on Ollama's own machines only: there are no weights to fetch; take a tag without cloud, or register it with source_type external_service and the address of the service", name)
}

// config is what the configuration blob says about the model.
type config struct {
	ModelFormat string `json:"model_format"`
	ModelFamily string `json:"model_family"`
	ModelType   string `json:"model_type"` // the number of parameters, for people: 3.2B
	FileType    string `json:"file_type"`  // the quantisation: Q4_K_M
	Renderer    string `json:"renderer"`
	Parser      string `json:"parser"`
	Requires    string `json:"requires"` // the oldest Ollama that runs it
	RemoteHost  string `json:"remote_host"`
	RemoteModel string `json:"remote_model"`
}

func readConfig(raw []byte) (config, error) {
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return config{}, headers.Corrupt("Take another tag, or ask whoever keeps the registry", "the model's configuration is not the JSON that was expected")
	}
	return c, nil
}

// readParams returns the parameters of a model in words, sorted: num_ctx 4096, stop "<|im_end|>". What is no JSON object is
// no reason to refuse a model: the engine will say what it thinks of it.
func readParams(raw []byte) []string {
	var params map[string]any
	if err := json.Unmarshal(raw, &params); err != nil {
		return nil
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(params)) {
		var text strings.Builder
		enc := json.NewEncoder(&text)
		enc.SetEscapeHTML(false) // stop words are full of <
		if len(out) == 20 || enc.Encode(params[k]) != nil {
			break
		}
		out = append(out, clip(strings.Map(printable, k))+" "+clip(strings.TrimSpace(text.String())))
	}
	return out
}

// licences are words by which the text of a licence is recognised, the more particular before the more general.
var licences = []struct{ text, name string }{
	{"apache license", "apache-2.0"}, {"mit license", "mit"}, {"permission is hereby granted, free of charge", "mit"},
	{"llama 4 community license", "llama4"}, {"llama 3.3 community license", "llama3.3"}, {"llama 3.2 community license", "llama3.2"},
	{"llama 3.1 community license", "llama3.1"}, {"meta llama 3 community license", "llama3"}, {"llama 2 community license", "llama2"},
	{"gemma terms of use", "gemma"}, {"tongyi qianwen", "tongyi-qianwen"}, {"qwen research license", "qwen-research"}, {"qwen license", "qwen"},
	{"deepseek license", "deepseek"}, {"mistral ai research license", "mistral-research"}, {"mistral ai non-production license", "mistral-mnpl"},
	{"creative commons attribution-noncommercial 4.0", "cc-by-nc-4.0"}, {"attribution-noncommercial 4.0 international", "cc-by-nc-4.0"},
	{"attribution 4.0 international", "cc-by-4.0"}, {"gnu affero general public license", "agpl-3.0"}, {"gnu general public license", "gpl-3.0"},
	{"bigcode openrail", "bigcode-openrail-m"}, {"falcon llm license", "falcon-llm"}, {"redistribution and use in source and binary forms", "bsd"},
}

// licenceOf names the licence that a text is, or returns the beginning of its first line.
func licenceOf(text string) string {
	words := strings.ToLower(strings.Join(strings.Fields(text[:min(len(text), 4096)]), " "))
	for _, l := range licences {
		if strings.Contains(words, l.text) {
			return l.name
		}
	}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(strings.ToValidUTF8(line, "")); line != "" {
			return clip(strings.Map(printable, line))
		}
	}
	return ""
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}
