package ollama

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Media types of a model's layers.
const (
	kindModel     = "application/vnd.ollama.image.model"
	kindProjector = "application/vnd.ollama.image.projector"
	kindTemplate  = "application/vnd.ollama.image.template"
	kindSystem    = "application/vnd.ollama.image.system"
	kindParams    = "application/vnd.ollama.image.params"
	kindConfig    = "application/vnd.docker.container.image.v1+json"
	kindManifest  = "application/vnd.docker.distribution.manifest.v2+json"
)

// maxManifest bounds the manifests that are read, in bytes.
const maxManifest = 4 << 20

// layer is one blob of a manifest. path is where its bytes are.
type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
	path      string
}

// manifest is what Ollama keeps under a model's name.
type manifest struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Config        layer   `json:"config"`
	Layers        []layer `json:"layers"`
}

// weights are a model as Ollama is to get it: layers, or files that it has to convert into layers first.
type weights struct {
	layers []layer
	config *layer // nil: one is made of family
	family string

	convert  bool
	files    map[string]string // name in the model's folder → path
	torch    []string          // of files, those of PyTorch, which become safetensors first
	quantize string            // as ollama create --quantize takes it; "" keeps the type

	library string // the name in an Ollama library; "" for other sources
	cost    cost   // of converting, or of fetching it again
}

var (
	split       = regexp.MustCompile(`-(\d{5})-of-(\d{5})\.gguf$`)
	quantizedAs = map[int]string{4: "q4_K_M", 8: "q8_0"}
)

// weightsOf finds what a model is made of. CodeLoadingFailed names a file that is missing; CodeInvalid a folder with more
// than one model, or weights that cannot be quantised.
func (l *Loader) weightsOf(spec loaders.LoadSpec) (weights, error) {
	a, m := spec.Artifact, spec.Model
	if m.SourceType == registry.SourceOllama {
		return l.fromLibrary(a, m)
	}
	w := weights{family: a.Facts.Architecture, quantize: quantizedAs[m.QuantizationBits]}
	w.cost = costOf(cmp.Or(a.Facts.WeightBytes, a.Bytes), a.Facts, m.QuantizationBits, false)
	if m.ModelFormat != registry.FormatGGUF {
		w.convert = true
		var err error
		if w.files, err = convertible(spec); err != nil {
			return w, err
		}
		for name := range w.files {
			if filepath.Ext(name) == ".bin" {
				w.torch = append(w.torch, name)
			}
		}
		slices.Sort(w.torch)
		w.cost = costOf(cmp.Or(a.Facts.WeightBytes, a.Bytes), a.Facts, m.QuantizationBits, len(w.torch) > 0)
		return w, nil
	}
	main, parts, projectors, err := ggufs(a)
	if err != nil {
		return w, err
	}
	for _, p := range slices.Concat([]string{main}, parts, projectors) {
		if err := checkMagic(p); err != nil {
			return w, err
		}
	}
	if w.quantize != "" {
		switch strings.ToLower(a.Facts.DType) {
		case "f16", "bf16", "f32":
			w.convert = true
		default:
			return w, &registry.Error{Code: registry.CodeInvalid, Op: "ollama.Load", Msg: "The weights are quantised already", Fields: []registry.FieldError{{
				Field: "quantization_bits", Msg: fmt.Sprintf("has no effect on weights of the type %s; leave it out, or take a file in f16 or bf16", a.Facts.DType)}}}
		}
	}
	if len(parts) > 0 || w.convert {
		// Ollama's llama-server is given one file, so that a model in several becomes one.
		w.convert, w.files = true, map[string]string{}
		for _, p := range slices.Concat([]string{main}, parts, projectors) {
			w.files[filepath.Base(p)] = p
		}
		return w, nil
	}
	for i, p := range slices.Concat([]string{main}, projectors) {
		kind := kindProjector
		if i == 0 {
			kind = kindModel
		}
		ly, err := fileLayer(kind, p, a)
		if err != nil {
			return w, failedWith(err, p)
		}
		w.layers = append(w.layers, ly)
	}
	return w, nil
}

// checkMagic reads whether a file begins as GGUF does. Ollama would take one that does not for a model that does nothing.
func checkMagic(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return failedWith(err, path)
	}
	defer func() { _ = file.Close() }() // only read from
	magic := make([]byte, 4)
	if _, err := io.ReadFull(file, magic); err == nil && string(magic) == "GGUF" {
		return nil
	}
	f := &registry.Failure{Kind: registry.FailureCorruptFile, Msg: path + " is not a GGUF file", Hint: "Check that source_path names a .gguf file and not, for example, a web page that was saved under its name; fetch it again."}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Load", Msg: f.Msg, Failure: f}
}

// fileLayer names a file as a blob. In a folder that is the instance's own a digest is a name and nothing else, so that a
// file without a known one is not read for it: 40 GB would take minutes.
func fileLayer(kind, path string, a registry.Artifact) (layer, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return layer{}, err
	}
	fi, err := os.Stat(abs)
	if err != nil {
		return layer{}, err
	}
	for _, f := range a.Files {
		if len(f.SHA256) == 64 && f.Size == fi.Size() && filepath.Base(f.Path) == filepath.Base(abs) {
			return layer{MediaType: kind, Digest: "sha256:" + f.SHA256, Size: fi.Size(), path: abs}, nil
		}
	}
	return layer{MediaType: kind, Digest: digestOf(fmt.Appendf(nil, "%s\x00%d\x00%d", abs, fi.Size(), fi.ModTime().UnixNano())), Size: fi.Size(), path: abs}, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func missing(hint, format string, args ...any) error {
	f := &registry.Failure{Kind: registry.FailureMissingFile, Msg: fmt.Sprintf(format, args...), Hint: hint}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Load", Msg: f.Msg, Failure: f}
}

// ggufs returns the file of the weights, its other parts, and what belongs to a vision part.
func ggufs(a registry.Artifact) (main string, parts, projectors []string, err error) {
	dir := a.Path
	fi, err := os.Stat(a.Path)
	if err == nil && !fi.IsDir() {
		main, dir = a.Path, filepath.Dir(a.Path)
	}
	found, err := filepath.Glob(filepath.Join(quoteGlob(dir), "*.gguf"))
	if err != nil {
		return "", nil, nil, err
	}
	slices.Sort(found)
	for _, f := range a.Files { // in folders below
		p := filepath.Join(a.Path, filepath.FromSlash(f.Path))
		if fi.IsDir() && strings.HasSuffix(f.Path, ".gguf") && filepath.IsLocal(filepath.FromSlash(f.Path)) && !slices.Contains(found, p) {
			found = append(found, p)
		}
	}
	var mains []string
	for _, p := range found {
		m := split.FindStringSubmatch(p)
		switch {
		case strings.HasPrefix(filepath.Base(p), "mmproj"):
			if fi.IsDir() { // one that merely lies beside a file that was named is not part of it
				projectors = append(projectors, p)
			}
		case m == nil || m[1] == "00001":
			mains = append(mains, p)
		}
	}
	if main == "" {
		switch len(mains) {
		case 0:
			return "", nil, nil, missing("Point source_path to a .gguf file, or to a folder that has one.", "There is no GGUF file in %s", a.Path)
		case 1:
			main = mains[0]
		default:
			return "", nil, nil, &registry.Error{Code: registry.CodeInvalid, Op: "ollama.Load", Msg: "The folder holds more than one model", Fields: []registry.FieldError{{
				Field: "source_path", Msg: fmt.Sprintf("holds %d GGUF models; name one of them, for example %s", len(mains), mains[0])}}}
		}
	}
	if m := split.FindStringSubmatch(main); m != nil {
		prefix := strings.TrimSuffix(main, m[0])
		for _, p := range found {
			if o := split.FindStringSubmatch(p); o != nil && p != main && o[2] == m[2] && strings.TrimSuffix(p, o[0]) == prefix {
				parts = append(parts, p)
			}
		}
		if want := strings.TrimLeft(m[2], "0"); fmt.Sprint(len(parts)+1) != want {
			return "", nil, nil, missing("Fetch the model again, all of its files.", "%s is one of %s files, of which %d are there", main, want, len(parts)+1)
		}
	}
	return main, parts, projectors, nil
}

// weightPatterns are the files of safetensors that Ollama converts, in the order in which it prefers them.
var weightPatterns = []string{"model*.safetensors", "consolidated*.safetensors"}

// convertible returns the files of a folder that ollama create would take, and those of PyTorch where there are no
// safetensors. The tokenizer of tokenizer_path is used instead of the model's own.
func convertible(spec loaders.LoadSpec) (map[string]string, error) {
	dir, m := spec.Artifact.Path, spec.Model
	if fi, err := os.Stat(dir); err == nil && !fi.IsDir() {
		dir = filepath.Dir(dir)
	}
	out := map[string]string{}
	for _, pattern := range weightPatterns {
		if take(out, dir, pattern); len(out) > 0 {
			break
		}
	}
	if len(out) == 0 {
		if err := takeTorch(out, dir); err != nil {
			return nil, err
		}
		switch {
		case len(out) == 0:
			return nil, missing("Point source_path to a folder with model.safetensors or pytorch_model.bin, as Transformers saves it.", "There are no weights in %s that Ollama converts", dir)
		case m.ModelFormat != registry.FormatTransformersPT:
			return nil, missing("Set model_format to transformers_pt.", "There are only PyTorch files in %s, and model_format is %s", dir, m.ModelFormat)
		}
	}
	if err := complete(dir, out); err != nil {
		return nil, err
	}
	take(out, dir, "*.json", "*/*.json", "chat_template.jinja", "tokenizer.model")
	delete(out, torchIndex)
	if _, ok := out["config.json"]; !ok {
		return nil, missing("Fetch the model again with its configuration.", "There is no config.json in %s, so nobody can tell what model it is", dir)
	}
	tokenizer, err := loaders.TokenizerPath(spec, loaders.ArtifactFolder(spec.Artifact))
	if err != nil {
		return nil, err
	}
	if tokenizer != "" {
		if err := takeTokenizer(out, tokenizer); err != nil {
			return nil, err
		}
	}
	_, fast := out["tokenizer.json"]
	_, spm := out["tokenizer.model"]
	if !fast && !spm {
		return nil, missing("Fetch the model again with its tokenizer, or name one in tokenizer_path.", "There is neither tokenizer.json nor tokenizer.model in %s, one of which Ollama needs", dir)
	}
	return out, nil
}

// takeTokenizer puts another tokenizer, a folder or one file, in the place of the model's own. Both of the model's go, since
// Ollama would prefer its tokenizer.model to the other's tokenizer.json.
func takeTokenizer(out map[string]string, path string) error {
	found := map[string]string{}
	if fi, err := os.Stat(path); err == nil && !fi.IsDir() {
		take(found, filepath.Dir(path), quoteGlob(filepath.Base(path)))
	} else {
		take(found, path, "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template.jinja")
	}
	if found["tokenizer.json"] == "" && found["tokenizer.model"] == "" {
		return missing("Set tokenizer_path to a folder that has tokenizer.json or tokenizer.model, or to one of these files.",
			"There is neither tokenizer.json nor tokenizer.model at %s, where tokenizer_path says; Ollama needs one of them", path)
	}
	delete(out, "tokenizer.json")
	delete(out, "tokenizer.model")
	maps.Copy(out, found)
	return nil
}

// take adds the files of a folder that match.
func take(out map[string]string, from string, patterns ...string) {
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(quoteGlob(from), pattern))
		if err != nil {
			continue // a pattern of ours is well-formed
		}
		for _, p := range found {
			rel, err := filepath.Rel(from, p)
			if fi, serr := os.Stat(p); err == nil && serr == nil && fi.Mode().IsRegular() {
				out[filepath.ToSlash(rel)] = p
			}
		}
	}
}

const torchIndex = "pytorch_model.bin.index.json"

var torchShard = regexp.MustCompile(`^pytorch_model-(\d{5,6})-of-(\d{5,6})\.bin$`)

// takeTorch adds the weights that Transformers would take of a folder with PyTorch's files: the one, or all shards.
func takeTorch(out map[string]string, dir string) error {
	if take(out, dir, "pytorch_model.bin"); len(out) > 0 {
		return nil
	}
	take(out, dir, "pytorch_model-*-of-*.bin")
	maps.DeleteFunc(out, func(name, _ string) bool { return !torchShard.MatchString(name) })
	for name := range out {
		if all := strings.TrimLeft(torchShard.FindStringSubmatch(name)[2], "0"); fmt.Sprint(len(out)) != all {
			return missing("Fetch the model again, all of its files.", "%s is one of %s files, of which %d are there", name, all, len(out))
		}
	}
	return nil
}

// complete holds the files of a folder against its index, which names every shard.
func complete(dir string, have map[string]string) error {
	indexes, err := filepath.Glob(filepath.Join(quoteGlob(dir), "*.index.json"))
	if err != nil {
		return err
	}
	for _, path := range indexes {
		text, err := readSmall(path, 64<<20)
		if err != nil {
			return failedWith(err, path)
		}
		var index struct {
			WeightMap map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(text, &index); err != nil {
			f := &registry.Failure{Kind: registry.FailureCorruptFile, Msg: fmt.Sprintf("%s is not the JSON that was expected", path), Hint: "Fetch the model again."}
			return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ollama.Load", Msg: f.Msg, Failure: f, Err: err}
		}
		kind := filepath.Ext(strings.TrimSuffix(path, ".index.json")) // of model.safetensors.index.json
		for _, file := range index.WeightMap {
			if _, ok := have[file]; !ok && filepath.Ext(file) == kind && haveKind(have, kind) {
				return missing("Fetch the model again, all of its files.", "%s names %s, which is not there", filepath.Base(path), file)
			}
		}
	}
	return nil
}

func haveKind(have map[string]string, ext string) bool {
	for name := range have {
		if filepath.Ext(name) == ext {
			return true
		}
	}
	return false
}

// fromLibrary reads the manifest of a model of an Ollama library at its exact revision.
func (l *Loader) fromLibrary(a registry.Artifact, m registry.Model) (weights, error) {
	dir := l.o.ModelsDir
	if dir == "" {
		dir = filepath.Dir(filepath.Dir(a.Path))
	}
	man, err := findManifest(dir, a.Revision)
	if err != nil {
		return weights{}, failedWith(err, dir)
	}
	if man == nil {
		return weights{}, missing("Fetch it again; somebody may have deleted it from Ollama's folder.", "The manifest of %s at revision %s is not in %s", m.SourcePath, a.Revision, dir)
	}
	w := weights{library: m.SourcePath, family: a.Facts.Architecture, cost: cost{pulled: a.Bytes}}
	if m.QuantizationBits != 0 {
		return w, &registry.Error{Code: registry.CodeInvalid, Op: "ollama.Load", Msg: "Models of an Ollama library are quantised already", Fields: []registry.FieldError{{
			Field: "quantization_bits", Msg: "has no effect on a model of an Ollama library; leave it out and choose a tag, such as llama3.2:3b-instruct-q8_0"}}}
	}
	err = w.take(dir, man)
	return w, err
}

// take makes the layers of a manifest in dir the model's own.
func (w *weights) take(dir string, man *manifest) error {
	here := func(ly layer) (layer, error) {
		if !digest.MatchString(ly.Digest) {
			return ly, failedWith(fmt.Errorf("its manifest names %s, which is no digest", clip(ly.Digest)), dir)
		}
		ly.path = filepath.Join(dir, "blobs", strings.Replace(ly.Digest, ":", "-", 1))
		if _, err := os.Stat(ly.path); err != nil {
			return ly, missing("Fetch the model again; somebody may have deleted it from Ollama's folder.", "%s, a part of the model, is not there", ly.path)
		}
		return ly, nil
	}
	for _, ly := range man.Layers {
		ly, err := here(ly)
		if err != nil {
			return err
		}
		w.layers = append(w.layers, ly)
	}
	if man.Config.Digest != "" {
		c, err := here(man.Config)
		if err != nil {
			return err
		}
		w.config = &c
	}
	return nil
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// findManifest looks through a folder of models for the manifest with a digest; nil when there is none.
func findManifest(dir, revision string) (*manifest, error) {
	paths, err := filepath.Glob(filepath.Join(quoteGlob(dir), "manifests", "*", "*", "*", "*"))
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		raw, err := readSmall(p, maxManifest)
		if err != nil || digestOf(raw) != revision {
			continue // gone meanwhile, or another model's
		}
		return parseManifest(raw)
	}
	return nil, nil
}

// parseManifest reads a manifest.
func parseManifest(raw []byte) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("the manifest is not the JSON that was expected: %w", err)
	}
	return &m, nil
}

// readSmall reads a file that should be small.
func readSmall(path string, limit int64) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > limit {
		return nil, fmt.Errorf("%s is no file of at most %s", path, registry.Bytes(limit))
	}
	return os.ReadFile(path)
}
