package metrics

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

var names = Names{
	Running: []string{"e:running"}, Waiting: []string{"e:waiting"}, KVCacheUse: []string{"e:cache", "e:old_cache"},
	PromptTokens: []string{"e:read_total"}, GeneratedTokens: []string{"e:written_total"}, Preemptions: []string{"e:preempted_total"},
	FirstToken: []string{"e:first_seconds"}, WholeAnswer: []string{"e:whole_seconds"},
}

func TestRead(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ text, want string }{
		"nothing": {"", `{}`},
		"two parts of an engine": {`# HELP e:running Requests.
# TYPE e:running gauge
e:running{engine="0",model_name="a/b"} 2.0
e:running{engine="1",model_name="a/b"} 3.0
# TYPE e:cache gauge
e:cache{engine="0"} 0.25
e:cache{engine="1"} 0.5
# TYPE e:written_total counter
e:written_total{engine="0"} 1.25e+06
e:written_total{engine="1"} 5
`, `{"running":5,"kv_cache_use":0.5,"generated_tokens":1250005}`},
		"without types, by an old name": {"e:waiting 7\ne:old_cache 1\n", `{"waiting":7,"kv_cache_use":1}`},
		"averages": {`# TYPE e:first_seconds histogram
e:first_seconds_bucket{le="0.5"} 3
e:first_seconds_bucket{le="+Inf"} 4
e:first_seconds_sum 2
e:first_seconds_count 4
# TYPE e:whole_seconds summary
e:whole_seconds_sum 9
e:whole_seconds_count 2
`, `{"first_token_seconds":0.5,"whole_answer_seconds":4.5}`},
		"nothing observed yet":   {"# TYPE e:first_seconds histogram\ne:first_seconds_bucket{le=\"+Inf\"} 0\ne:first_seconds_sum 0\ne:first_seconds_count 0\n", `{}`},
		"no numbers that can be": {"e:running NaN\ne:waiting -1\ne:cache 1.5\ne:read_total +Inf\ne:written_total 1e300\n", `{}`},
		"of another kind":        {"# TYPE e:running histogram\ne:running_sum 1\ne:running_count 1\n", `{}`},
	} {
		got, err := Read([]byte(tt.text), names)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var want registry.Activity
		if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: (-want +got)\n%s", name, d)
		}
	}
	for _, text := range []string{"<html>", "e:running one\n", `e:running{ 1`} {
		if _, err := Read([]byte(text), names); registry.CodeOf(err) != registry.CodeUnavailable || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{"# TYPE e:running gauge\ne:running{engine=\"0\"} 2.0\n", "e:cache 0.5\n", "# TYPE e:first_seconds histogram\ne:first_seconds_sum 1e308\ne:first_seconds_count 1\n", "e:running NaN 1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := Read([]byte(text), names)
		if err != nil {
			return
		}
		if _, err := json.Marshal(a); err != nil {
			t.Errorf("%q cannot be told: %v", text, err)
		}
		for what, n := range map[string]*int64{"running": a.Running, "waiting": a.Waiting, "read": a.PromptTokens, "written": a.GeneratedTokens, "preempted": a.Preemptions} {
			if n != nil && *n < 0 {
				t.Errorf("%q: %s is %d", text, what, *n)
			}
		}
		if u := a.KVCacheUse; u != nil && (*u < 0 || *u > 1) {
			t.Errorf("%q: the cache is %g full", text, *u)
		}
	})
}
