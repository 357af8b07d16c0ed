package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestEveryFieldOfTheForm sends the form with one bad value after the other: the error stands at its field, nothing is
// stored, nothing is started.
func TestEveryFieldOfTheForm(t *testing.T) {
	w := newWorld(t)
	bad := map[string][]string{
		"model_id":               {"a b", "../x", "/abs", "a//b", "a?b", "a%2Fb", "a\x00b", "\u202eb", strings.Repeat("x", 300)},
		"source_type":            {"", "ftp"},
		"source_path":            {"", "relative", "/a/../b", "/a\x00"},
		"model_format":           {"pt"},
		"revision":               {"../x", "a\x07"},
		"quantization_bits":      {"3", "four", "-4"},
		"device_preference":      {"gpu"},
		"required_gpu_memory_mb": {"-1", "much", "1.5"},
		"required_ram_mb":        {"-1", "1e18"},
		"custom_loader_params":   {"threads 8", "[1]", "a: [", "a: 1\na: 2"},
		"tokenizer_path":         {"../x", "/a/../b"},
		"engine":                 {"warp"},
		"team":                   {"Not A Team", "nowhere"},
		"description":            {"\x01", strings.Repeat("x", registry.MaxDescription+1)},
		"tags":                   {"a\x01", strings.Repeat("x", 300)},
		"context_length":         {"-1", "8k", "99999999999"},
		"gpu_ids":                {"-1", "0,0", "first"},
		"idle_timeout":           {"tomorrow", "-5s", "9999999h"},
		"priority":               {"101", "high"},
	}
	good := map[string]string{"model_id": "good", "source_type": "local", "source_path": w.weights, "model_format": "gguf", "team": registry.DefaultTeam}
	for _, f := range registry.Fields {
		if len(bad[f.Name]) == 0 && f.Kind != registry.KindBool { // a box is ticked or not
			t.Errorf("there is no bad value for %s", f.Name)
		}
		for _, v := range bad[f.Name] {
			fields := []string{f.Name, v}
			for name, value := range good {
				if name != f.Name {
					fields = append(fields, name, value)
				}
			}
			a := w.admin.post("/models", fields...)
			errorAt, invalid := "#f-"+f.Name+"-err", a.doc().Find("#f-"+f.Name).AttrOr("aria-invalid", "")
			if f.Name == "source_type" { // a choice, and no field to type in
				errorAt, invalid = "#model-form .err", "true"
			}
			if a.Status != http.StatusUnprocessableEntity || a.text(errorAt) == "" || invalid != "true" {
				t.Errorf("%s = %.40q: status %d, and its error is %q", f.Name, v, a.Status, a.text(errorAt))
			}
		}
	}
	if n, err := w.store.CountModels(t.Context()); err != nil || n != 0 {
		t.Errorf("%d models are stored, %v", n, err)
	}
	if res := w.manager.Resources(); len(res.Reservations) != 0 {
		t.Errorf("bad input started something: %+v", res.Reservations)
	}
}
