package cli

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestShowSaysWhatIsLoaded(t *testing.T) {
	var v any
	if err := json.Unmarshal([]byte(`{"model_class":"BertModel","tokenizer_class":"BertTokenizer","device":"cpu","dtype":"float32","parameters":4385920,"bytes":17543680}`), &v); err != nil {
		t.Fatal(err)
	}
	want := []string{"model_class\tBertModel", "tokenizer_class\tBertTokenizer", "loaded on\tcpu", "loaded dtype\tfloat32", "loaded parameters\t4385920", "loaded bytes\t17 MiB"}
	if got := loadedLines(v); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	for _, v := range []any{nil, "much", map[string]any{}} {
		if got := loadedLines(v); len(got) > 0 {
			t.Errorf("%v: %q", v, got)
		}
	}
	a := newAPI(t, map[string]any{"GET /api/v1/models/m": map[string]any{"model_id": "m", "status": "ready", "loaded": v}})
	if code, out := a.run("", "show", "m"); code != 0 || !strings.Contains(out, "BertTokenizer") || strings.Contains(out, "{") {
		t.Errorf("%d\n%s", code, out)
	}
}
