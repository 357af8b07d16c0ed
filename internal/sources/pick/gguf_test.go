package pick_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

func TestLabel(t *testing.T) {
	for name, want := range map[string]string{
		"Llama-3.2-1B-Instruct-Q4_K_M.gguf":           "Q4_K_M",
		"tinyllama-1.1b-chat-v1.0.q5_k_s.gguf":        "Q5_K_S",
		"ggml-model-q4_0.gguf":                        "Q4_0",
		"ggml-model-Q4_0_4_8.gguf":                    "Q4_0_4_8",
		"Phi-3-mini-4k-instruct-q4.gguf":              "Q4",
		"Phi-3-mini-4k-instruct-fp16.gguf":            "FP16",
		"gemma-3-4b-it-UD-Q4_K_XL.gguf":               "UD-Q4_K_XL",
		"model-IQ3_XXS.gguf":                          "IQ3_XXS",
		"model.i1-IQ4_NL.gguf":                        "IQ4_NL",
		"Qwen2-7B-Instruct-BF16-00001-of-00003.gguf":  "BF16",
		"gpt-oss-20b-MXFP4.gguf":                      "MXFP4",
		"Q8_0/model-00001-of-00002.gguf":              "Q8_0",
		"BF16/DeepSeek-R1.BF16-00001-of-00030.gguf":   "BF16",
		"Q2-Solar-10B-Q6_K.gguf":                      "Q6_K",
		"model_name_q8_0.gguf":                        "Q8_0",
		"SmolLM2-135M-Instruct.Q4_1.gguf":             "Q4_1",
		"model-TQ1_0.gguf":                            "TQ1_0",
		"just-a-model.gguf":                           "",
		"Q-model.gguf":                                "",
		"Qwen3-Coder-30B-A3B-Instruct-1M-Q3_K_L.gguf": "Q3_K_L",
	} {
		if got := pick.Label(name); got != want {
			t.Errorf("Label(%q) = %q, want %q", name, got, want)
		}
	}
}

func files(names ...string) []registry.File {
	var out []registry.File
	for i, n := range names {
		out = append(out, registry.File{Path: n, Size: int64(1000 * (i + 1))})
	}
	return out
}

func TestShardsBelongTogether(t *testing.T) {
	all := files("m-Q4_0-00002-of-00003.gguf", "m-Q4_0-00001-of-00003.gguf", "m-Q4_0-00003-of-00003.gguf", "m-Q8_0-00001-of-00002.gguf",
		"other/m-Q4_0-00001-of-00003.gguf", "mmproj-m.gguf", "m-00009-of-00002.gguf", "m-00001-of-99999.gguf")
	sets, side := pick.GGUFSets(all)
	if !slices.Equal(side, []string{"mmproj-m.gguf"}) || len(sets) != 5 {
		t.Fatalf("there are %d sets and beside them %v: %+v", len(sets), side, sets)
	}
	s, _, err := pick.GGUF(all, pick.Choice{Filename: "m-Q4_0-00003-of-00003.gguf"})
	if err != nil || s.Main != "m-Q4_0-00001-of-00003.gguf" || len(s.Files) != 3 || s.Bytes != 6000 {
		t.Errorf("%+v, %v", s, err)
	}
	_, _, err = pick.GGUF(all, pick.Choice{Quantization: "q8_0"})
	e := registry.AsError(err)
	if e == nil || e.Failure == nil || e.Failure.Kind != registry.FailureMissingFile || !strings.Contains(e.Error(), "m-Q8_0-00002-of-00002.gguf") {
		t.Errorf("a set without its second shard: %v", err)
	}
	// Two models of one quantisation are told apart by their names.
	_, _, err = pick.GGUF(files("a-Q4_0.gguf", "b-Q4_0.gguf"), pick.Choice{Quantization: "Q4_0"})
	if e := registry.AsError(err); e == nil || len(e.Fields) != 1 || e.Fields[0].Field != "custom_loader_params.filename" || !strings.Contains(e.Error(), "b-Q4_0.gguf") {
		t.Errorf("two of one quantisation: %v", err)
	}
}

func TestONNXChoice(t *testing.T) {
	all := files("onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "model.onnx_data")
	for filename, want := range map[string][]string{
		"":                   {"onnx/model.onnx", "onnx/model.onnx_data"},
		"model_q4.onnx":      {"onnx/model_q4.onnx", "onnx/model_q4.onnx_data"},
		"onnx/model_q4.onnx": {"onnx/model_q4.onnx", "onnx/model_q4.onnx_data"},
	} {
		s, err := pick.ONNX(all, filename)
		var got []string
		for _, f := range s.Files {
			got = append(got, f.Path)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", filename, got, err)
		}
	}
	if _, err := pick.ONNX(files("a.onnx", "b.onnx"), ""); registry.CodeOf(err) != registry.CodeInvalid {
		t.Errorf("two models and none chosen: %v", err)
	}
}
