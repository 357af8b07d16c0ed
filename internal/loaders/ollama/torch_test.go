package ollama_test

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/ollama"
	"github.com/industriverse/llmmodelmanager/internal/loaders/pytorch/pytorchtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/ollama/ollamatest"
)

// torchFolder is tinyFolder with the weights of another in shards as torch.save writes them, and their index. One matrix
// lies transposed, as some are saved.
func torchFolder(t *testing.T, of string) string {
	t.Helper()
	dir := tinyFolder(t)
	remove(t, dir, "model.safetensors")
	b, err := os.ReadFile(filepath.Join(of, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	start := 8 + binary.LittleEndian.Uint64(b)
	header := map[string]struct {
		Shape   []int  `json:"shape"`
		Offsets []int  `json:"data_offsets"`
		DType   string `json:"dtype"`
	}{}
	if err := json.Unmarshal(b[8:start], &header); err != nil {
		t.Fatal(err)
	}
	delete(header, "__metadata__")
	weights, where := map[string]tensor{}, map[string]string{}
	for name, h := range header {
		weights[name] = tensor{h.Shape, b[start:][h.Offsets[0]:h.Offsets[1]]}
	}
	var shards [2][]pytorchtest.Tensor
	for i, name := range slices.Sorted(maps.Keys(weights)) {
		x := pytorchtest.Tensor{Name: name, Class: "BFloat16Storage", Shape: weights[name].shape, Data: weights[name].data}
		if name == "lm_head.weight" {
			rows, cols := x.Shape[0], x.Shape[1]
			turned := make([]byte, len(x.Data))
			for r := range rows {
				for c := range cols {
					copy(turned[2*(c*rows+r):][:2], x.Data[2*(r*cols+c):])
				}
			}
			x.Data, x.Strides = turned, []int{1, rows}
		}
		shards[i%2] = append(shards[i%2], x)
		where[name] = []string{"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}[i%2]
	}
	for i, name := range []string{"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"} {
		if err := os.WriteFile(filepath.Join(dir, name), pytorchtest.Save(t, shards[i]...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeJSON(t, filepath.Join(dir, "pytorch_model.bin.index.json"), map[string]any{"weight_map": where})
	return dir
}

// TestPyTorch: a folder of PyTorch's shards answers what the same weights answer as safetensors, in an Ollama of our own
// and in a running one, and nothing but the model is left of the conversion.
func TestPyTorch(t *testing.T) {
	program, _ := engine(t)
	models := t.TempDir()
	l := ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)})
	plain := tinySpec(tinyFolder(t), 0)
	in, _ := loadIt(t, l, &plain)
	want := complete(t, in, "ab")
	stopIt(t, in)
	if want == "" {
		t.Fatal("the safetensors answer nothing")
	}

	dir := torchFolder(t, plain.Artifact.Path)
	before := tree(t, dir)
	sp := plain
	sp.Model.ModelFormat, sp.Model.SourcePath, sp.Artifact.Path = registry.FormatTransformersPT, dir, dir
	in, msgs := loadIt(t, l, &sp)
	if !strings.Contains(msgs, "PyTorch to safetensors") {
		t.Errorf("the conversion was not reported: %s", msgs)
	}
	if got := complete(t, in, "ab"); got != want {
		t.Errorf("PyTorch's files answer %q, safetensors %q", got, want)
	}
	ep := in.Endpoint()
	if ep.Device != "cpu" || ep.DType == "" || ep.Parameters <= 0 {
		t.Errorf("ps was not taken: %+v", ep)
	}
	stopIt(t, in)
	left, err := filepath.Glob(filepath.Join(models, "blobs", ".llmm", "convert-*"))
	if err != nil || len(left) > 0 || tree(t, dir) != before {
		t.Errorf("left %v, %v, or the user's folder was touched", left, err)
	}

	o := ollamatest.StartOllama(t, t.TempDir())
	own := t.TempDir()
	theirs := ollama.New(ollama.Options{Host: o.URL, ModelsDir: own, TagPrefix: tag(t)})
	in, _ = loadIt(t, theirs, &sp)
	if got := complete(t, in, "ab"); got != want {
		t.Errorf("in a running server PyTorch's files answer %q, safetensors %q", got, want)
	}
	stopIt(t, in)
	if left := tree(t, own); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestPyTorchWithCode: a pickle that would run something is refused with its name, and nothing is left.
func TestPyTorchWithCode(t *testing.T) {
	program, _ := engine(t)
	dir, models := tinyFolder(t), t.TempDir()
	remove(t, dir, "model.safetensors")
	ran := filepath.Join(t.TempDir(), "ran")
	evil := pytorchtest.Pickle("\x80\x02").Global("posix", "mkdir").Text(ran) + "\x85R."
	b := pytorchtest.Archive(t, pytorchtest.Entry{Name: "archive/data.pkl", Data: []byte(evil)})
	if err := os.WriteFile(filepath.Join(dir, "pytorch_model.bin"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	sp := tinySpec(dir, 0)
	sp.Model.ModelFormat = registry.FormatTransformersPT
	f := loadFails(t, ollama.New(ollama.Options{Path: program, ModelsDir: models, TagPrefix: tag(t)}), &sp)
	if f.Kind != registry.FailureCorruptFile || !strings.Contains(f.Msg, "posix.mkdir") || f.Hint == "" {
		t.Errorf("got %+v", f)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("the code was run")
	}
	if left := tree(t, models); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestPulls: a model of a library that a running server does not have is fetched by it, with progress in bytes.
func TestPulls(t *testing.T) {
	_, gguf := engine(t)
	reg := ollamatest.StartRegistry(t, ollamatest.RegistryOptions{Storage: true}) // Ollama's client needs one that points elsewhere
	weights, err := os.ReadFile(gguf)
	if err != nil {
		t.Fatal(err)
	}
	config := `{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"134.52M","file_type":"Q4_1","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`
	pushed := reg.Push(t, "team/smol", "135m", []byte(config), ollamatest.Layer{Type: ollamatest.Model, Content: weights})
	ours := t.TempDir()
	name := reg.Host + "/team/smol:135m"
	at := filepath.Join(ours, "manifests", reg.Host, "team", "smol", "135m")
	for path, content := range map[string][]byte{
		at: pushed.Raw,
		filepath.Join(ours, "blobs", strings.Replace(pushed.Blobs[0], ":", "-", 1)):                   weights,
		filepath.Join(ours, "blobs", strings.Replace(pushed.Blobs[len(pushed.Blobs)-1], ":", "-", 1)): []byte(config),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := ollamatest.StartOllama(t, t.TempDir())
	l := ollama.New(ollama.Options{Host: o.URL, ModelsDir: ours, TagPrefix: tag(t), Insecure: []string{reg.Host}})
	sp := spec(gguf, nil)
	sp.Model.SourceType, sp.Model.SourcePath = registry.SourceOllama, name
	sp.Artifact.Path, sp.Artifact.Revision = filepath.Join(ours, "blobs", strings.Replace(pushed.Blobs[0], ":", "-", 1)), pushed.Digest
	fill(t, &sp)
	var most registry.Progress
	in, err := l.Load(t.Context(), sp, func(p registry.Progress) {
		if strings.Contains(p.Msg, "fetches") {
			if p.Done < most.Done || p.Done > p.Total || p.Unit != registry.UnitBytes {
				t.Errorf("progress went from %+v to %+v", most, p)
			}
			most = p
		}
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, o.Log())
	}
	t.Cleanup(func() { stopIt(t, in) })
	if most.Done == 0 || most.Total < int64(len(weights)) { // Ollama does not tell the last of it

		t.Errorf("the last progress of the pull was %+v of %d bytes", most, len(weights))
	}
	m := running(t, in)
	holder, ok := in.(loaders.Holder)
	if !ok {
		t.Fatal("it does not tell what it holds")
	}
	if ram, gpu, err := holder.Held(t.Context()); err != nil || ram != m.Size || gpu != m.SizeVRAM {
		t.Errorf("it holds %d and %d bytes, %v; ps says %d, of them %d on GPUs", ram, gpu, err, m.Size, m.SizeVRAM)
	}
	if m.Size == 0 || in.Endpoint().Device != "cpu" || in.Endpoint().DType != "Q4_1" {
		t.Errorf("ps shows %+v, the instance %+v", m, in.Endpoint())
	}
	if text := chat(t, in, "What is the capital of France?"); text == "" {
		t.Error("it answers nothing")
	}
}
