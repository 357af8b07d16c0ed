package cli

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestShow reads the output as a person does: what is loaded, what it takes and does, why it failed, and nothing of JSON.
func TestShow(t *testing.T) {
	for name, c := range map[string]struct {
		model string
		want  []string // in this order
	}{
		"ready": {
			model: `{"model_id":"m","status":"ready","memory":{"predicted_ram":734003200,"measured_ram":681574400,"reported_ram":524288000},
				"loaded":{"model_class":"BertModel","tokenizer_class":"BertTokenizer","device":"cpu","dtype":"float32","parameters":4385920,"bytes":17543680},
				"activity":{"at":"2026-11-23T10:00:00Z","running":2,"waiting":1,"kv_cache_use":0.5,"generated_tokens":1200,"first_token_seconds":0.25}}`,
			want: []string{"model_id m", "status ready", "main memory 700 MiB predicted, 650 MiB measured, 500 MiB by the engine's own count",
				"model_class BertModel", "tokenizer_class BertTokenizer", "loaded on cpu", "loaded dtype float32", "loaded parameters 4385920", "loaded bytes 17 MiB",
				"requests 2 requests running, 1 waiting", "KV cache 50% full", "tokens 1,200 written", "answers first token after 250ms"},
		},
		"failed": {
			model: `{"model_id":"m","status":"failed","version":3,"updated_at":"2026-11-23T14:09:57.17358344Z","failure":{"kind":"crash","message":"The engine ended.","hint":"Look at its log.","log_tail":["Traceback","ValueError: no"],"exit_code":1}}`,
			want:  []string{"status failed", "version 3", "updated_at 2026-11-2", "Failed (crash, exit code 1): The engine ended.", "Look at its log.", "| Traceback", "| ValueError: no"},
		},
		"killed": {
			model: `{"model_id":"m","status":"failed","failure":{"kind":"out_of_memory","message":"The kernel ended it. Ask for less.","hint":"Ask for less.","signal":"SIGKILL"}}`,
			want:  []string{"Failed (out_of_memory, SIGKILL): The kernel ended it. Ask for less."},
		},
		"an engine that tells nothing": {
			model: `{"model_id":"m","status":"ready","memory":{},"loaded":{},"activity":{"at":"2026-11-23T10:00:00Z"}}`,
			want:  []string{"model_id m", "status ready"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAPI(t, map[string]any{"GET /api/v1/models/m": json.RawMessage(c.model)})
			code, out := a.run("", "show", "m")
			if code != 0 || strings.ContainsAny(out, `{"`) {
				t.Fatalf("%d\n%s", code, out)
			}
			rest := strings.Join(strings.Fields(out), " ")
			for _, w := range c.want {
				_, after, ok := strings.Cut(rest, w)
				if !ok {
					t.Fatalf("no %q (in its place) in\n%s", w, out)
				}
				rest = after
			}
			for _, empty := range []string{"memory of GPUs", "KV cache\n", "loaded on\n"} {
				if strings.Contains(out, empty) {
					t.Errorf("%q is empty in\n%s", empty, out)
				}
			}
		})
	}
}
