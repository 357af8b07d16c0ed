package local_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/local"
	"github.com/industriverse/llmmodelmanager/internal/sources/sourcetest"
)

func TestOffers(t *testing.T) {
	dir := t.TempDir()
	big := append(sourcetest.TinyGGUF(1), make([]byte, 100)...)
	write(t, dir, map[string][]byte{
		"quants/m-Q4_K_M.gguf": sourcetest.TinyGGUF(1), "quants/m-Q8_0.gguf": big, "quants/mmproj-F16.gguf": {1}, "quants/README.md": {1},
		"same/a-Q4_0.gguf": {1}, "same/b-Q4_0.gguf": {1, 2},
		"one/model.gguf": {1, 2, 3}, "one/.git/x.gguf": {1}, "blob": sourcetest.TinyGGUF(1), "text": []byte("hello"),
		"onnx/config.json": {1}, "onnx/onnx/model.onnx": {1}, "onnx/onnx/model.onnx_data": {1, 2}, "onnx/onnx/model_q4.onnx": {1},
		"pickles/pytorch_model.bin": {1}, "pickles/config.json": {1},
		"nothing/README.md": {1}, "adapter/adapter_model.safetensors": {1}, "adapter/adapter_config.json": []byte("{}"),
	})
	write(t, filepath.Join(dir, "hub"), sourcetest.SafetensorsFolder(1))
	write(t, filepath.Join(dir, "hub"), map[string][]byte{"pytorch_model.bin": {1}, "gguf/m-Q6_K.gguf": {1}})
	write(t, filepath.Join(dir, "quants"), sourcetest.SplitGGUF("split/m-BF16", 1))
	tiny, split := int64(len(sourcetest.TinyGGUF(1))), int64(0)
	for _, b := range sourcetest.SplitGGUF("m", 1) {
		split += int64(len(b))
	}
	var hub int64
	for _, b := range sourcetest.SafetensorsFolder(1) {
		hub += int64(len(b))
	}
	s := local.New(local.Options{Roots: []string{dir}})
	for path, want := range map[string][]registry.Offer{
		"quants": {
			{Format: gguf, Label: "BF16", Params: map[string]any{"quantization": "BF16"}, Files: 2, Bytes: split},
			{Format: gguf, Label: "Q8_0", Params: map[string]any{"quantization": "Q8_0"}, Files: 1, Bytes: tiny + 100},
			{Format: gguf, Label: "Q4_K_M", Params: map[string]any{"quantization": "Q4_K_M"}, Files: 1, Bytes: tiny},
		},
		"same": {
			{Format: gguf, Label: "b-Q4_0.gguf", Params: map[string]any{"filename": "b-Q4_0.gguf"}, Files: 1, Bytes: 2},
			{Format: gguf, Label: "a-Q4_0.gguf", Params: map[string]any{"filename": "a-Q4_0.gguf"}, Files: 1, Bytes: 1},
		},
		"one":                  {{Format: gguf, Label: "model.gguf", Files: 1, Bytes: 3}},
		"blob":                 {{Format: gguf, Label: "gguf", Files: 1, Bytes: tiny}},
		"quants/m-Q4_K_M.gguf": {{Format: gguf, Label: "Q4_K_M", Files: 1, Bytes: tiny}},
		"pickles":              {{Format: registry.FormatTransformersPT, Label: "transformers_pt", Files: 2, Bytes: 2}},
		"quants/split/m-BF16-00002-of-00002.gguf": {{Format: gguf, Label: "BF16", Files: 2, Bytes: split}},
		"onnx": {
			{Format: registry.FormatONNX, Label: "model.onnx", Params: map[string]any{"filename": "onnx/model.onnx"}, Files: 2, Bytes: 3},
			{Format: registry.FormatONNX, Label: "Q4", Params: map[string]any{"quantization": "Q4"}, Files: 1, Bytes: 1},
		},
		"hub": {
			{Format: safetensors, Label: "safetensors", Files: 6, Bytes: hub},
			{Format: gguf, Label: "Q6_K", Files: 1, Bytes: 1},
		},
	} {
		got, err := s.Offers(t.Context(), sources.Ref{Path: filepath.Join(dir, path)})
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", path, err, d)
		}
	}
	for path, want := range map[string]string{"text": "no model by itself", "nothing": "no weights", "gone": "nothing at", "adapter": "no weights"} {
		_, err := s.Offers(t.Context(), sources.Ref{Path: filepath.Join(dir, path)})
		if code := registry.CodeOf(err); code == "" || code == registry.CodeInternal {
			t.Errorf("%s: %v", path, err)
			continue
		}
		t.Log(want, err)
	}

	// What is offered can be resolved as it is offered.
	ref := sources.Ref{Path: filepath.Join(dir, "quants"), Format: gguf, Params: map[string]any{"quantization": "Q4_K_M"}}
	snap, err := s.Resolve(t.Context(), ref)
	if err != nil || snap.Main != "m-Q4_K_M.gguf" || snap.Bytes != tiny {
		t.Errorf("got %+v, %v", snap, err)
	}
	ref.Params = map[string]any{"quantization": "bf16"}
	snap, err = s.Resolve(t.Context(), ref)
	if err != nil || snap.Main != "split/m-BF16-00001-of-00002.gguf" || len(snap.Files) != 2 {
		t.Errorf("got %+v, %v", snap, err)
	}
	ref.Params = map[string]any{"filename": "m-Q4_K_M.gguf"}
	if snap, err = s.Resolve(t.Context(), ref); err != nil || snap.Main != "m-Q4_K_M.gguf" {
		t.Errorf("got %+v, %v", snap, err)
	}
	ref.Params = map[string]any{"quantization": "Q2_K"}
	_, err = s.Resolve(t.Context(), ref)
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.quantization", "Q2_K", "m-Q4_K_M.gguf")
	ref.Params = map[string]any{"filename": "../one/model.gguf"}
	_, err = s.Resolve(t.Context(), ref)
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.filename")
	ref.Params = nil
	_, err = s.Resolve(t.Context(), ref)
	refused(t, err, registry.CodeInvalid, none, "3 GGUF models", "custom_loader_params.quantization")
	onnx := sources.Ref{Path: filepath.Join(dir, "onnx"), Format: registry.FormatONNX, Params: map[string]any{"filename": "gone.onnx"}}
	_, err = s.Resolve(t.Context(), onnx)
	refused(t, err, registry.CodeInvalid, none, "custom_loader_params.filename", "model_q4.onnx")
}

func TestCheck(t *testing.T) {
	s := local.New(local.Options{})
	for i, tt := range []struct {
		ref  sources.Ref
		want []string
	}{
		{sources.Ref{Path: "/m", Params: map[string]any{"n_gpu_layers": 3, "quantization": "Q4_K_M", "filename": "sub/x.gguf"}, Format: gguf}, nil},
		{sources.Ref{Path: "/m", Tokenizer: "t", Format: gguf}, []string{"tokenizer_path"}},
		{sources.Ref{Path: "/m\x00", Format: gguf}, []string{"source_path"}},
		{sources.Ref{Path: "/m", Params: map[string]any{"quantization": 4, "filename": "../x"}}, []string{"custom_loader_params.filename", "custom_loader_params.quantization"}},
		{sources.Ref{Path: "/m", Params: map[string]any{"quantization": "Q4_0"}, Format: safetensors}, []string{"custom_loader_params.quantization"}},
		{sources.Ref{Path: "/m", Params: map[string]any{"filename": "/etc/passwd"}}, []string{"custom_loader_params.filename"}},
	} {
		var got []string
		for _, f := range s.Check(tt.ref) {
			got = append(got, f.Field)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
}

// TestOpenWithinRoots: a link that is changed between looking and opening does not lead out of the roots.
func TestOpenWithinRoots(t *testing.T) {
	inside, outside := t.TempDir(), t.TempDir()
	longer := sourcetest.LlamaKeys()
	longer["general.name"] = "Another, which is longer by more than an alignment"
	write(t, outside, map[string][]byte{"a.gguf": sourcetest.GGUF(longer, sourcetest.LlamaTensors(1))})
	write(t, inside, map[string][]byte{"real/a.gguf": sourcetest.TinyGGUF(1)})
	check(t, os.Symlink(filepath.Join(inside, "real"), filepath.Join(inside, "m")))
	s := local.New(local.Options{Roots: []string{inside}})
	ref := sources.Ref{Path: filepath.Join(inside, "m"), Format: gguf}
	_, err := s.Resolve(t.Context(), ref)
	check(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 500 {
			target := []string{filepath.Join(inside, "real"), outside}[i%2]
			tmp := filepath.Join(inside, fmt.Sprintf("new%d", i%2))
			if err := os.Symlink(target, tmp); err != nil {
				t.Error(err)
			}
			if err := os.Rename(tmp, filepath.Join(inside, "m")); err != nil {
				t.Error(err)
			}
		}
	}()
	for range 300 {
		snap, err := s.Resolve(t.Context(), ref)
		if err != nil {
			if code := registry.CodeOf(err); code == registry.CodeInternal {
				t.Fatal(err)
			}
			continue
		}
		if snap.Bytes != int64(len(sourcetest.TinyGGUF(1))) || snap.Facts.Name != "Tiny" {
			t.Errorf("a file outside of the roots was read: %+v", snap)
		}
	}
	<-done
}
