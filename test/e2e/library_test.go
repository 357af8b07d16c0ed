package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// asInTheGuide calls what the guide's examples call, in their order. Its arguments are a GGUF and the parameters of tiny-bert,
// which it leaves loaded.
const asInTheGuide = `
import asyncio, sys
from llm_model_manager import *

async def main():
    manager = LLMModelManager()
    listed = {m["model_id"]: m for m in await manager.list_available_models()}
    assert set(listed) == {"tiny-bert", "local-custom-model"}, listed
    assert listed["tiny-bert"]["source_type"] == "huggingface" and listed["tiny-bert"]["status"] == "not_loaded" and listed["tiny-bert"]["device"] == ""
    config = {"model_id": "team/dynamic", "source_type": "local", "source_path": sys.argv[1], "model_format": "gguf", "device_preference": "cpu", "context_length": 512}
    assert await manager.register_model(config, persist=True) is True
    loaded = await manager.load_model("team/dynamic")
    assert loaded.config.model_id == "team/dynamic" and loaded.device == "cpu" and loaded.endpoint["apis"], loaded
    assert type(loaded.model_class) is str and loaded.model_class
    again = await manager.load_model("team/dynamic")
    assert again.instance_id == loaded.instance_id, "a loaded model is left as it is"
    anew = await manager.load_model("team/dynamic", force_reload=True)
    assert anew.instance_id != loaded.instance_id, "force_reload unloads it first"
    assert (await manager.get_model_instance("team/dynamic")).instance_id == anew.instance_id
    assert await manager.unload_model("team/dynamic") is True
    assert await manager.unload_model("team/dynamic") is False
    bert = await manager.load_model("tiny-bert")
    assert (bert.config.source_path, bert.engine, bert.device) == ("prajjwal1/bert-tiny", "transformers", "cpu"), bert
    assert (bert.model_class, bert.dtype, bert.parameters) == ("BertModel", "float32", int(sys.argv[2])), bert
    assert bert.tokenizer_class.startswith("BertTokenizer") and 4 * bert.parameters <= bert.bytes <= 5 * bert.parameters, bert
    assert (await manager.get_model_instance("tiny-bert")).instance_id == bert.instance_id
    got = await manager.get_model_configuration("tiny-bert")
    assert (got.revision, got.quantization_bits, got.device_preference, got.required_ram_mb, got.trust_remote_code) == ("main", None, "cpu", 200, False), got.__dict__
    await fails(ModelNotFoundError, manager.get_model_configuration("nobody"))
    await fails(ConfigurationError, manager.register_model({**config, "source_type": "ftp"}))
    await manager.register_model({**config, "model_id": "team/gone", "source_path": sys.argv[1] + ".gone"}, persist=False)
    await fails(ModelLoadingError, manager.load_model("team/gone"))
    await manager.register_model({**config, "required_ram_mb": 1 << 24}, persist=False)
    await fails(ResourceNotAvailableError, manager.load_model("team/dynamic"))

async def fails(kind, call):
    try:
        await call
    except kind as e:
        assert str(e) and e.problem["status"] >= 400
        return
    raise AssertionError(f"{kind.__name__} was expected")

asyncio.run(main())
`

// TestLibraryOfTheGuide runs the module of docs/migration.md, as it stands there, through what the guide's examples do, with
// the guide's models file as it is shipped: only where the Hub is, and where /opt/models, is another place. Then both models
// of that file are asked through the gateway, and the engines try themselves.
func TestLibraryOfTheGuide(t *testing.T) {
	doc, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	module := regexp.MustCompile("(?s)```python\n(\"\"\"The calls of the library.*?)```").FindSubmatch(doc)
	if module == nil {
		t.Fatal("docs/migration.md has no module with the library's calls")
	}
	hub, parameters := hubOfTheGuide(t)
	dir := t.TempDir()
	customParameters := customModel(t, filepath.Join(dir, "my-custom-local-model-dir"))
	shipped, err := os.ReadFile("../../models.yaml")
	if err != nil {
		t.Fatal(err)
	}
	yaml := filepath.Join(dir, "models.yaml")
	write(t, yaml, []byte(strings.ReplaceAll(string(shipped), "/opt/models/my-custom", dir+"/my-custom")))
	write(t, filepath.Join(dir, "llm_model_manager.py"), module[1])
	s := start(t, filepath.Join(dir, "data"), yaml, append([]string{"HF_ENDPOINT=" + hub.URL, "HF_HOME=" + filepath.Join(dir, "hf"), "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1"}, named()...)...)

	cmd := exec.CommandContext(t.Context(), "python3", "-c", asInTheGuide, weights(t), strconv.FormatInt(parameters, 10))
	cmd.Dir = dir
	// The Python of this machine may be set up to use a proxy; the server is on the loopback.
	cmd.Env = append(os.Environ(), "LLMM_SERVER="+s.url, "LLMM_TOKEN="+token, "NO_PROXY=127.0.0.1", "no_proxy=127.0.0.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, strings.TrimSpace(string(out)))
	}
	if got := s.embed("tiny-bert", "the cat sat", "the dog sat", "the cat sat"); got[0][0] != got[2][0] || got[0][0] == got[1][0] {
		t.Errorf("one text twice and another give %v, %v and %v", got[0][:3], got[2][:3], got[1][:3])
	}
	s.unloads("tiny-bert")

	var res struct{ GPUs []any }
	s.call("GET", "/api/v1/resources", nil, http.StatusOK, &res)
	const custom = "local-custom-model"
	if len(res.GPUs) == 0 {
		var p struct{ Code, Detail string }
		s.call("POST", path(custom)+"/load?wait=60s", nil, http.StatusConflict, &p)
		if p.Code != "insufficient_resources" || !strings.Contains(p.Detail, "no GPU") {
			t.Errorf("it asks for cuda, and there is no GPU: %+v", p)
		}
	}
	s.call("POST", path(custom)+"/load?wait=60s", map[string]any{"device": "cpu"}, http.StatusOK, nil)
	var in struct {
		Engine         string
		Device         string
		ModelClass     string `json:"model_class"`
		TokenizerClass string `json:"tokenizer_class"`
		DType          string
		Parameters     int64
		Bytes          int64
		Endpoint       struct{ Device string }
	}
	s.call("POST", path(custom)+"/instance?wait=60s", nil, http.StatusOK, &in)
	if in.Engine != "transformers" || in.Device != "cpu" || in.Endpoint.Device != "cpu" || in.ModelClass != "HouseForMaskedLM" || !strings.HasPrefix(in.TokenizerClass, "BertTokenizer") ||
		in.DType != "float32" || in.Parameters != customParameters || in.Bytes < 4*customParameters || in.Bytes > 5*customParameters {
		t.Errorf("the instance says %+v; it has %d parameters", in, customParameters)
	}
	if shown := s.cli("show", custom); !strings.Contains(shown, "HouseForMaskedLM") || !strings.Contains(shown, strconv.FormatInt(customParameters, 10)) {
		t.Errorf("llmm show does not say what is loaded:\n%s", shown)
	}
	var filled struct {
		Data []struct {
			Masks [][]struct {
				Text  string `json:"token_str"`
				Score float64
			}
		}
	}
	s.call("POST", "/v1/fill-mask", map[string]any{"model": custom, "input": "the [MASK] sat", "top_k": 3}, http.StatusOK, &filled)
	if len(filled.Data) != 1 || len(filled.Data[0].Masks) != 1 || len(filled.Data[0].Masks[0]) != 3 || filled.Data[0].Masks[0][0].Text == "" || filled.Data[0].Masks[0][0].Score <= 0 {
		t.Errorf("fill-mask answers %+v", filled)
	}
	if got := s.embed(custom, "the cat sat"); got[0][0] == 0 {
		t.Errorf("a vector begins with %v", got[0][:3])
	}
	s.unloads(custom)
	for _, engine := range []string{"transformers", "ollama"} {
		s.selfTest(engine)
	}
	s.noEngines()
}

// selfTest tries an engine with a tiny model, as its page does.
func (s *server) selfTest(engine string) {
	s.t.Helper()
	var op struct {
		ID      string
		State   string
		Outcome string
		Stages  []struct{ Name, State, Message string }
	}
	s.call("POST", "/api/v1/engines/"+engine+"/self-test", map[string]any{"device": "cpu"}, http.StatusAccepted, &op)
	for op.State == "queued" || op.State == "running" {
		s.call("GET", "/api/v1/operations/"+op.ID+"?wait=60s", nil, http.StatusOK, &op)
	}
	answered := false
	for _, stage := range op.Stages {
		answered = answered || stage.Name == "ask" && stage.State == "done" && strings.HasPrefix(stage.Message, "Answered ")
	}
	if op.State != "succeeded" || !answered || !strings.Contains(op.Outcome, "works") {
		s.t.Errorf("the self-test of %s: %+v", engine, op)
	}
	var left struct {
		Models []struct {
			ModelID string `json:"model_id"`
		}
	}
	s.call("GET", "/api/v1/models?q=self-test", nil, http.StatusOK, &left)
	if len(left.Models) > 0 {
		s.t.Errorf("the self-test of %s leaves %v", engine, left.Models)
	}
}

// named are the engines that the tests are told of; others are found where they were installed.
func named() []string {
	var env []string
	for _, of := range [][2]string{{"LLMM_TEST_TRANSFORMERS_PYTHON", "LLMM_TRANSFORMERS_PYTHON"}, {"LLMM_TEST_OLLAMA", "LLMM_OLLAMA"}} {
		if p := os.Getenv(of[0]); p != "" {
			env = append(env, of[1]+"="+p)
		}
	}
	return env
}

// embed asks for vectors of the tiny BERT's size through the gateway.
func (s *server) embed(id string, texts ...string) [][]float64 {
	s.t.Helper()
	var got struct {
		Data []struct{ Embedding []float64 }
	}
	s.call("POST", "/v1/embeddings", map[string]any{"model": id, "input": texts}, http.StatusOK, &got)
	if len(got.Data) != len(texts) {
		s.t.Fatalf("%d vectors for %d texts", len(got.Data), len(texts))
	}
	var out [][]float64
	for _, d := range got.Data {
		if len(d.Embedding) != bertHidden {
			s.t.Fatalf("a vector of %d numbers, want %d", len(d.Embedding), bertHidden)
		}
		out = append(out, d.Embedding)
	}
	return out
}

// unloads unloads a model that is loaded.
func (s *server) unloads(id string) {
	s.t.Helper()
	var got struct{ Unloaded bool }
	s.call("POST", path(id)+"/unload?wait=60s", nil, http.StatusOK, &got)
	if !got.Unloaded {
		s.t.Errorf("%s was loaded, and unload says that it was not", id)
	}
}
