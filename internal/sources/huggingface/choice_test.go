package huggingface_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/huggingface"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func paths(files []registry.File) []string {
	var out []string
	for _, f := range files {
		out = append(out, f.Path)
	}
	return out
}

// quants is a repository as those who quantise publish them.
func quants() map[string][]byte {
	files := map[string][]byte{
		"README.md":            []byte("---\nlicense: mit\n---\n"),
		"config.json":          []byte(`{"model_type": "llama"}`),
		"tiny-Q8_0.gguf":       bigGGUF(40000, 8),
		"tiny-Q4_K_M.gguf":     bigGGUF(20000, 4),
		"tiny-UD-Q4_K_XL.gguf": bigGGUF(21000, 5),
		"mmproj-tiny-f16.gguf": bigGGUF(4000, 1),
		"tiny.imatrix":         []byte("statistics"),
	}
	for name, content := range sourcetest.SplitGGUF("BF16/tiny-BF16", 7) {
		files[name] = content
	}
	return files
}

func TestOneQuantisation(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/quants", quants())
	split := []string{"BF16/tiny-BF16-00001-of-00002.gguf", "BF16/tiny-BF16-00002-of-00002.gguf"}
	for name, c := range map[string]struct {
		params []any
		want   []string
	}{
		"by name":           {[]any{"quantization", "Q4_K_M"}, []string{"tiny-Q4_K_M.gguf"}},
		"by name, small":    {[]any{"quantization", "q8_0"}, []string{"tiny-Q8_0.gguf"}},
		"dynamic":           {[]any{"quantization", "UD-Q4_K_XL"}, []string{"tiny-UD-Q4_K_XL.gguf"}},
		"split":             {[]any{"quantization", "BF16"}, split},
		"file":              {[]any{"filename", "tiny-Q8_0.gguf"}, []string{"tiny-Q8_0.gguf"}},
		"second shard":      {[]any{"filename", "BF16/tiny-BF16-00002-of-00002.gguf"}, split},
		"base name":         {[]any{"filename", "tiny-BF16-00001-of-00002.gguf"}, split},
		"pattern":           {[]any{"filename", "*Q8*"}, []string{"tiny-Q8_0.gguf"}},
		"allowed":           {[]any{"allow_patterns", []any{"*Q8_0*"}}, []string{"tiny-Q8_0.gguf"}},
		"ignored":           {[]any{"ignore_patterns", []any{"*Q4*", "BF16/"}}, []string{"tiny-Q8_0.gguf"}},
		"address of a file": nil2(),
	} {
		ref := withParams(gguf("org/quants"), c.params...)
		if name == "address of a file" {
			ref.Path, c.want = r.hub.URL+"/org/quants/blob/main/tiny-Q8_0.gguf", []string{"tiny-Q8_0.gguf"}
		}
		snap := r.resolve(r.source, ref)
		if d := cmp.Diff(c.want, paths(snap.Files)); d != "" || snap.Main != c.want[0] {
			t.Errorf("%s: main %s: %s", name, snap.Main, d)
		}
	}
	e := r.wrong(r.source, gguf("org/quants"))
	says(t, e, registry.CodeInvalid, "must choose one of the 4", "Q4_K_M (2", "KiB)", "Q8_0", "UD-Q4_K_XL", "BF16")
	if len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params.quantization" || strings.Contains(e.Error(), "mmproj") {
		t.Errorf("the fields are %+v", e.Fields)
	}
	e = r.wrong(r.source, withParams(gguf("org/quants"), "quantization", "Q2_K"))
	says(t, e, registry.CodeInvalid, `"Q2_K"`, "Q4_K_M")
	says(t, r.wrong(r.source, withParams(gguf("org/quants"), "filename", "no.gguf")), registry.CodeInvalid, "no.gguf", "tiny-Q8_0.gguf")
	says(t, r.wrong(r.source, withParams(gguf("org/quants"), "allow_patterns", "*.nothing")), registry.CodeInvalid, "allow_patterns", "none of the")
	a := r.fetch(r.source, withParams(gguf("org/quants"), "quantization", "BF16"))
	if !strings.HasSuffix(a.Path, split[0]) {
		t.Errorf("the artifact is %s", a.Path)
	}
}

func nil2() (c struct {
	params []any
	want   []string
}) {
	return c
}

func TestOffers(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := quants()
	for name, content := range mixed() {
		files[name] = content
	}
	delete(files, "BF16/tiny-BF16-00002-of-00002.gguf")
	r.hub.Put(t, "org/all", files)
	r.hub.Forget()
	offers, err := r.source.Offers(within(t), withParams(sources.Ref{Path: "org/all", Format: registry.FormatONNX}, "quantization", "none"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range offers {
		got = append(got, fmt.Sprintf("%s %v %d", o.Format, o.Params, o.Files))
	}
	for _, want := range []string{"safetensors map[] 5", "gguf map[quantization:Q4_K_M] 1", "gguf map[quantization:Q8_0] 1", "gguf map[quantization:UD-Q4_K_XL] 1"} {
		found := false
		for _, g := range got {
			if strings.HasPrefix(g, strings.Fields(want)[0]) && strings.Contains(g, strings.Fields(want)[1]) {
				found = true
			}
		}
		if !found {
			t.Errorf("%q is not offered: %q", want, got)
		}
	}
	if len(got) == 0 || !strings.HasPrefix(got[0], "safetensors") || strings.Contains(strings.Join(got, " "), "BF16") {
		t.Errorf("the offers are %q", got)
	}
	if s := r.hub.Served(); s.Bytes != 0 || s.Requests > 2 {
		t.Errorf("it took %d requests and %d bytes of files", s.Requests, s.Bytes)
	}
	// What is offered can be resolved by its parameters.
	for _, o := range offers {
		if o.Format != registry.FormatGGUF {
			continue
		}
		if snap := r.resolve(r.source, sources.Ref{Path: "org/all", Format: o.Format, Params: o.Params}); snap.Bytes != o.Bytes {
			t.Errorf("%s is offered with %d bytes and has %d", o.Label, o.Bytes, snap.Bytes)
		}
	}
}

func TestOnlyWhatTheFormatNeeds(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	r.hub.Put(t, "org/mixed", mixed())
	base := []string{"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"}
	if d := cmp.Diff(base, paths(r.resolve(r.source, safetensors("org/mixed")).Files)); d != "" {
		t.Error(d)
	}
	// transformers takes safetensors before pickles.
	if d := cmp.Diff(base, paths(r.resolve(r.source, sources.Ref{Path: "org/mixed", Format: registry.FormatTransformersPT}).Files)); d != "" {
		t.Error(d)
	}
	trusted := safetensors("org/mixed")
	trusted.RemoteCode = true
	if d := cmp.Diff(append([]string{"config.json"}, append(base[1:4:4], "modeling_tiny.py", "tokenizer.json", "tokenizer_config.json")...), paths(r.resolve(r.source, trusted).Files)); d != "" {
		t.Error(d)
	}
	onnx := sources.Ref{Path: "org/mixed", Format: registry.FormatONNX}
	snap := r.resolve(r.source, onnx)
	if snap.Main != "onnx/model.onnx" {
		t.Errorf("the ONNX model is %q of %v", snap.Main, paths(snap.Files))
	}
}

// TestCost looks at a model of 70 billion parameters in 30 shards: names, sizes and headers as they are, and no weights.
func TestCost(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	files := map[string][]byte{
		"config.json": []byte(`{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 8192,
			"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 131072}`),
		"tokenizer.json":         []byte(strings.Repeat(" ", 9<<20) + "{}"),
		"tokenizer_config.json":  []byte(`{"chat_template": "` + strings.Repeat("x", 50000) + `"}`),
		"generation_config.json": []byte(`{}`),
	}
	var index []string
	total := 0
	for shard := 1; shard <= 30; shard++ {
		name := fmt.Sprintf("model-%05d-of-00030.safetensors", shard)
		var tensors []sourcetest.STTensor
		for i := range 24 {
			tensor := fmt.Sprintf("model.layers.%d.self_attn_and_a_long_name.%d.weight", shard, i)
			tensors = append(tensors, sourcetest.STTensor{Name: tensor, DType: "BF16", Shape: []int64{64, 512}, Data: make([]byte, 64*512*2)})
			index = append(index, fmt.Sprintf("%q: %q", tensor, name))
			total += 64 * 512 * 2
		}
		files[name] = sourcetest.Safetensors(tensors...)
	}
	files["model.safetensors.index.json"] = []byte(fmt.Sprintf(`{"metadata": {"total_size": %d}, "weight_map": {%s}}`, total, strings.Join(index, ", ")))
	r.hub.Put(t, "org/big", files)
	r.hub.Forget()
	snap := r.resolve(r.source, safetensors("org/big"))
	s := r.hub.Served()
	t.Logf("%d requests, %d bytes of files", s.Requests, s.Bytes)
	if s.Requests > 15 || s.Bytes > 1_000_000 || snap.Cost.Requests != s.Requests || snap.Cost.Bytes < s.Bytes || snap.Cost.Bytes > 1_000_000 {
		t.Errorf("it took %d requests and %d bytes of files, and says %+v", s.Requests, s.Bytes, snap.Cost)
	}
	f := snap.Facts
	if f.Parameters != int64(total/2) || f.WeightBytes != int64(total) || f.DType != "bf16" || f.Layers != 80 || f.KVHeads != 8 || !f.ChatTemplate || !f.Tokenizer {
		t.Errorf("the facts are %+v", f)
	}
}

// TestCostOfAVocabulary looks at a GGUF file whose header has megabytes of tokens.
func TestCostOfAVocabulary(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	keys := sourcetest.LlamaKeys()
	tokens := make([]string, 200_000)
	for i := range tokens {
		tokens[i] = fmt.Sprintf("token number %d", i)
	}
	keys["tokenizer.ggml.tokens"] = tokens
	content := sourcetest.GGUF(keys, sourcetest.LlamaTensors(1))
	r.hub.Put(t, "org/words", map[string][]byte{"words-Q4_1.gguf": content})
	r.hub.Forget()
	snap := r.resolve(r.source, gguf("org/words"))
	s := r.hub.Served()
	t.Logf("%d requests, %d of %d bytes", s.Requests, s.Bytes, len(content))
	if s.Requests > 8 || s.Bytes > 1_000_000 {
		t.Errorf("it took %d requests and %d bytes of files", s.Requests, s.Bytes)
	}
	if f := snap.Facts; f.Layers != 2 || f.KVHeads != 2 || f.ContextLength != 2048 || !f.Tokenizer {
		t.Errorf("the facts are %+v", f)
	}
	// Once it is here, everything is read.
	a := r.fetch(r.source, gguf("org/words"))
	again := r.resolve(r.source, gguf("org/words"))
	if again.Facts.Parameters != 4160 || again.OnDisk != a.Bytes {
		t.Errorf("the facts of what is on disk are %+v", again.Facts)
	}
}

// TestErrorsAboutTheTokenizerNameItsField: every field that concerns the other repository is that of tokenizer_path.
func TestErrorsAboutTheTokenizerNameItsField(t *testing.T) {
	err := &registry.Error{Code: registry.CodeInvalid, Msg: "m", Fields: []registry.FieldError{{Field: "source_path", Msg: "a"}, {Field: "custom_loader_params.x", Msg: "b"}, {Field: "revision", Msg: "c"}}}
	var got []string
	for _, f := range registry.AsError(huggingface.AboutTokenizer(err)).Fields {
		got = append(got, f.Field)
	}
	if !slices.Equal(got, []string{"tokenizer_path", "custom_loader_params.x", "tokenizer_path"}) || err.Fields[0].Field != "source_path" {
		t.Errorf("%v of %+v", got, err.Fields)
	}
}

// TestTokenizerPath: a tokenizer of another repository is fetched along, a few files of it; one of the repository's own
// folders is, too; one of this machine is the engine's to open.
func TestTokenizerPath(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	config := []byte(sourcetest.LlamaConfig)
	words := map[string][]byte{"tokenizer.json": []byte(`{"model": {}}`), "tokenizer_config.json": []byte(`{}`), "config.json": config, "README.md": []byte("# words"),
		"model.safetensors": sourcetest.Safetensors(sourcetest.STTensor{Name: "x", DType: "F32", Shape: []int64{4}, Data: make([]byte, 16)}), "tokenization_own.py": []byte("import os")}
	commit := r.hub.Put(t, "org/words", words)
	r.hub.Put(t, "org/nothing-to-say", map[string][]byte{"config.json": config})
	r.hub.Put(t, "org/bare", map[string][]byte{"config.json": config, "model.safetensors": sourcetest.Safetensors(sourcetest.STTensor{Name: "model.norm.weight", DType: "F32", Shape: []int64{4}, Data: make([]byte, 16)}),
		"words/tokenizer.json": []byte(`{}`), "words/weights.bin": []byte("x")})
	ref := safetensors("org/bare")
	if f := r.resolve(r.source, ref).Facts; f.Tokenizer || !strings.Contains(strings.Join(f.Notes, " "), "set tokenizer_path") {
		t.Errorf("%+v", f)
	}
	ref.Tokenizer = "words"
	if snap := r.resolve(r.source, ref); !snap.Facts.Tokenizer || snap.Tokenizer != nil || !cmp.Equal(paths(snap.Files), []string{"config.json", "model.safetensors", "words/tokenizer.json"}) {
		t.Errorf("a folder of its own: %+v %v", snap.Facts, paths(snap.Files))
	}
	ref.Tokenizer = "/opt/words"
	if snap := r.resolve(r.source, ref); !snap.Facts.Tokenizer || snap.Tokenizer != nil {
		t.Errorf("a folder of this machine: %+v", snap)
	}

	for _, name := range []string{"org/words", "hf://org/words@main", r.hub.URL + "/org/words"} {
		ref.Tokenizer = name
		snap := r.resolve(r.source, ref)
		if c := snap.Tokenizer; !snap.Facts.Tokenizer || c == nil || c.Path != "org/words" || c.Revision != commit || c.Bytes == 0 || !cmp.Equal(paths(c.Files), []string{"config.json", "tokenizer.json", "tokenizer_config.json"}) {
			t.Fatalf("%s: %+v", name, snap)
		}
	}
	snap := r.resolve(r.source, ref)
	var first, last registry.Progress
	a, err := r.source.Fetch(within(t), snap, func(p registry.Progress) {
		if first.Total == 0 {
			first = p
		}
		if p.Done < last.Done && p.Stage == last.Stage {
			t.Errorf("progress went back from %+v to %+v", last, p)
		}
		last = p
	})
	if err != nil || a.Tokenizer == nil || a.Bytes != snap.Bytes {
		t.Fatalf("%+v %v", a, err)
	}
	if whole := snap.Bytes + snap.Tokenizer.Bytes; first.Total != whole || last.Done != whole || last.Total != whole {
		t.Errorf("of %d bytes it began with %+v and ended with %+v", whole, first, last)
	}
	for _, name := range paths(snap.Tokenizer.Files) {
		if got, err := os.ReadFile(filepath.Join(a.Tokenizer.Folder, name)); err != nil || !bytes.Equal(got, words[name]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Both are the cache's, for Python as well; and nothing is fetched twice, nor needed of the network any more.
	r.same()
	r.hub.Forget()
	if _, err := r.source.Fetch(within(t), r.resolve(r.source, ref), func(registry.Progress) {}); err != nil || r.hub.Served().Bytes != 0 {
		t.Errorf("a second time %d bytes were fetched: %v", r.hub.Served().Bytes, err)
	}
	away := r.open(offline)
	if again, err := away.Fetch(within(t), r.resolve(away, ref), func(registry.Progress) {}); err != nil || again.Tokenizer.Folder != a.Tokenizer.Folder {
		t.Errorf("without the Hub: %+v %v", again, err)
	}

	for name, want := range map[string]string{"org/nothing-to-say": "holds no tokenizer", "org/none": "tokenizer_path", "no such folder!": "tokenizer_path"} {
		ref.Tokenizer = name
		if _, err := r.source.Resolve(within(t), ref); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "source_path") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A GGUF file has its own, and does not fail for another.
	r.hub.Put(t, "org/file", map[string][]byte{"tiny.gguf": sourcetest.TinyGGUF(1)})
	own := gguf("org/file")
	own.Tokenizer = "org/none"
	if snap := r.resolve(r.source, own); snap.Tokenizer != nil || !strings.Contains(strings.Join(snap.Facts.Notes, " "), "the file has its own") {
		t.Errorf("%+v", snap)
	}
	// That is said, too, when all of it is here and is read once more.
	r.fetch(r.source, own)
	if snap := r.resolve(r.source, own); snap.OnDisk != snap.Bytes || !strings.Contains(strings.Join(snap.Facts.Notes, " "), "the file has its own") {
		t.Errorf("on disk: %+v", snap)
	}
	own.Tokenizer = "org/words"
	if snap := r.resolve(r.source, own); snap.Tokenizer == nil {
		t.Errorf("%+v", snap)
	}
	r.hub.Set(t, "org/words", hubtest.Settings{Gated: "manual"})
	ref.Tokenizer = "org/words"
	if _, err := r.open(func(o *huggingface.Options) { o.Cache = t.TempDir() }).Fetch(within(t), r.resolve(r.source, ref), func(registry.Progress) {}); err == nil || !strings.Contains(err.Error(), "org/words is gated") {
		t.Errorf("a gated tokenizer: %v", err)
	}
}

// TestNormalize: an address becomes the id, and what else it names.
func TestNormalize(t *testing.T) {
	r := newRig(t, hubtest.Options{})
	host := strings.TrimPrefix(r.hub.URL, "http://")
	commit := strings.Repeat("a", 40)
	for _, c := range []struct {
		path     string
		format   registry.Format
		revision string
		want     string // path revision format filename
	}{
		{"org/name", "", "main", "org/name main"},
		{"gpt2", "", "main", "gpt2 main"},
		{"hf://org/name", "", "main", "org/name main"},
		{"hf://org/name@v2", "", "main", "org/name v2"},
		{"hf://models/org/name@v2/a/m.gguf", "", "main", "org/name v2 gguf a/m.gguf"},
		{"hf://org/name@refs/pr/3", "", "main", "org/name refs/pr/3"},
		{"hf://org/name/m-Q4_K_M.gguf", registry.FormatGGUF, "main", "org/name main gguf m-Q4_K_M.gguf"},
		{"https://huggingface.co/org/name", "", "main", "org/name main"},
		{"https://huggingface.co/org/name/", "", "main", "org/name main"},
		{"https://hf.co/org/name/tree/" + commit, "", "main", "org/name " + commit},
		{"https://huggingface.co/org/name/tree/refs%2Fpr%2F3", "", "main", "org/name refs/pr/3"},
		{"https://huggingface.co/org/name/blob/main/sub%20folder/m.gguf?download=true#x", "", "main", "org/name main gguf sub folder/m.gguf"},
		{"https://huggingface.co/org/name/blob/main/README.md", registry.FormatSafetensors, "main", "org/name main safetensors"},
		{"https://huggingface.co/org/name/blob/main/m.gguf", registry.FormatSafetensors, "main", "org/name main safetensors"},
		{"http://" + host + "/org/name/tree/dev", "", "dev", "org/name dev"},
		// Not understood: as it is, and refused by Check.
		{"https://elsewhere.example/org/name", "", "main", "https://elsewhere.example/org/name main"},
		{"https://ada:hf_x@huggingface.co/org/name", "", "main", "https://ada:hf_x@huggingface.co/org/name main"},
		{"https://huggingface.co/datasets/org/name", "", "main", "https://huggingface.co/datasets/org/name main"},
		{"hf://org/name@v2", "", "v3", "hf://org/name@v2 v3"},
		{"https://huggingface.co/org/name/tree/%zz", "", "main", "https://huggingface.co/org/name/tree/%zz main"},
	} {
		given := sources.Ref{Path: c.path, Revision: c.revision, Format: c.format}
		got := r.source.Normalize(given)
		words := []string{got.Path, got.Revision}
		if got.Format != "" {
			words = append(words, string(got.Format))
		}
		if name, ok := got.Params["filename"].(string); ok {
			words = append(words, name)
		}
		if text := strings.Join(words, " "); text != c.want {
			t.Errorf("%s became %s, want %s", c.path, text, c.want)
		}
		// Check agrees with it, and quotes no password.
		errs := r.source.Check(got)
		if understood := got.Path != c.path || !strings.Contains(c.path, ":"); understood != (len(errs) == 0) || strings.Contains(fmt.Sprint(errs), "hf_x") {
			t.Errorf("%s: %v", c.path, errs)
		}
		if again := r.source.Normalize(got); again.Path != got.Path || again.Revision != got.Revision {
			t.Errorf("%s is not the same after a second time: %+v", c.path, again)
		}
	}
	own := map[string]any{"quantization": "Q8_0"}
	if got := r.source.Normalize(sources.Ref{Path: "https://hf.co/org/name/blob/main/m.gguf", Params: own}); got.Params["filename"] != nil || len(own) != 1 {
		t.Errorf("the choice that was given is lost: %+v", got)
	}
}
