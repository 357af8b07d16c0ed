package cli

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestActivityLines(t *testing.T) {
	t.Parallel()
	var v any
	if err := json.Unmarshal([]byte(`{"at":"2026-11-23T10:00:00Z","running":2,"waiting":1,"kv_cache_use":0.5,"generated_tokens":1200,"first_token_seconds":0.25}`), &v); err != nil {
		t.Fatal(err)
	}
	want := []string{"requests\t2 requests running, 1 waiting", "KV cache\t50% full", "tokens\t1,200 written", "answers\tfirst token after 250ms"}
	if got := activityLines(v); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, v := range []any{nil, "busy", map[string]any{"at": "2026-11-23T10:00:00Z"}} {
		if got := activityLines(v); len(got) > 0 {
			t.Errorf("%v: %q", v, got)
		}
	}
}
