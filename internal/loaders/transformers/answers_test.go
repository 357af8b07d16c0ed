package transformers_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/transformers"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestAnswersOfALanguageModel(t *testing.T) {
	dir := models(t)
	s := spec(filepath.Join(dir, "llama"), nil)
	l := transformers.New(options(tagOf(t)))
	in, reports, err := loadWith(t, l, s)
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(tail(err), "\n"))
	}
	ep := in.Endpoint()
	if ep.ModelClass != "LlamaForCausalLM" || ep.TokenizerClass == "" || ep.ContextLength != 512 || !slices.Equal(ep.APIs, []registry.API{registry.APIChat, registry.APICompletions}) {
		t.Errorf("the endpoint says %+v", ep)
	}
	checkLoaded(t, ep, filepath.Join(s.Artifact.Path, "model.safetensors"), "float32", 4)
	if !slices.ContainsFunc(reports, func(p registry.Progress) bool {
		return p.Stage == registry.StageWeights && p.Unit == registry.UnitTensors && p.Done == p.Total && p.Total > 10
	}) {
		t.Errorf("the weights' progress is not told tensor by tensor: %+v", reports)
	}
	for _, want := range []struct {
		stage registry.StageName
		says  string
	}{{registry.StageEngine, "config"}, {registry.StageEngine, "tokenizer"}, {registry.StageWeights, "AutoModelForCausalLM, 0.4 MiB"}} {
		if !slices.ContainsFunc(reports, func(p registry.Progress) bool { return p.Stage == want.stage && strings.Contains(p.Msg, want.says) }) {
			t.Errorf("%q is not told: %+v", want.says, reports)
		}
	}
	if code, stats := get(t, in, "/stats"); code != http.StatusOK || stats["dtype"] != "float32" || stats["attention"] != "sdpa" {
		t.Errorf("status %d: %v", code, stats)
	}
	complete := func(prompt string, more map[string]any) (string, error) {
		body := map[string]any{"model": "m", "prompt": prompt, "max_tokens": 24, "temperature": 0}
		for k, v := range more {
			body[k] = v
		}
		code, got := ask(t, in, "/v1/completions", body)
		if code != http.StatusOK {
			return "", fmt.Errorf("status %d: %v", code, got)
		}
		return got["choices"].([]any)[0].(map[string]any)["text"].(string), nil
	}
	served := func() any {
		_, stats := get(t, in, "/stats")
		return stats["served"]
	}
	before, _ := served().(float64)
	if _, err := complete("a", map[string]any{"temperature": -1}); err == nil || before != 1 || served() != before {
		t.Errorf("of one first request and looks at what it does it says %v and %v", before, served())
	}
	if _, err := complete("a", nil); err != nil || served() != before+1 {
		t.Errorf("%v requests were served, want %v (%v)", served(), before+1, err)
	}
	prompts := []string{"a", "Once upon a time", "x y z", "héllo wörld 漢字", "1234567890", "The quick brown fox jumps"}
	alone := map[string]string{}
	for _, p := range prompts {
		text, err := complete(p, nil)
		if err != nil || text == "" {
			t.Fatalf("%q: %q, %v", p, text, err)
		}
		alone[p] = text
	}

	t.Run("the same in a batch", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 24 {
			p := prompts[i%len(prompts)]
			wg.Go(func() {
				if text, err := complete(p, nil); err != nil || text != alone[p] {
					t.Errorf("%q: %q in a batch, %q alone (%v)", p, text, alone[p], err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("the reference's own text", func(t *testing.T) {
		v, err := l.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), v.Path, "-c", `
import sys, json, torch
from transformers import AutoModelForCausalLM as M, AutoTokenizer as T
m, k = M.from_pretrained(sys.argv[1]), T.from_pretrained(sys.argv[1])
x = k(sys.argv[2], return_tensors="pt")
print(json.dumps(k.decode(m.generate(**x, max_new_tokens=24, do_sample=False)[0][x["input_ids"].shape[1]:], skip_special_tokens=True)))`,
			s.Artifact.Path, prompts[1]).Output()
		if err != nil {
			t.Fatal(err)
		}
		var want string
		if err := json.Unmarshal(out, &want); err != nil || want != alone[prompts[1]] {
			t.Errorf("got %q, transformers itself gives %q (%v)", alone[prompts[1]], want, err)
		}
	})
	t.Run("a seed", func(t *testing.T) {
		hot := map[string]any{"temperature": 1.5, "seed": 7}
		a, err1 := complete("hi", hot)
		b, err2 := complete("hi", hot)
		c, err3 := complete("hi", map[string]any{"temperature": 1.5, "seed": 8})
		if err1 != nil || err2 != nil || err3 != nil || a != b || a == c {
			t.Errorf("%q, %q and with another seed %q (%v %v %v)", a, b, c, err1, err2, err3)
		}
	})
	t.Run("a stop string", func(t *testing.T) {
		whole := alone[prompts[1]]
		runes := []rune(whole)
		stop := string(runes[len(runes)/2 : len(runes)/2+2])
		want, _, _ := strings.Cut(whole, stop)
		if got, err := complete(prompts[1], map[string]any{"stop": stop}); err != nil || got != want {
			t.Errorf("with stop %q: %q, want %q (%v)", stop, got, want, err)
		}
	})
	t.Run("hanging up ends the work", func(t *testing.T) { hangUp(t, in) })
	t.Run("refusals", func(t *testing.T) { refusals(t, in) })
}

// hangUp leaves a long stream after its first event. What was asked for must then end in far less time than it takes whole.
func hangUp(t *testing.T, in loaders.Instance) {
	t.Helper()
	// More than one batch, so that some of it waits.
	body := map[string]any{"prompt": "x", "max_tokens": 200, "n": 16, "ignore_eos": true}
	began := time.Now()
	if code, got := ask(t, in, "/v1/completions", body); code != http.StatusOK {
		t.Fatalf("status %d: %v", code, got)
	}
	whole := time.Since(began)
	body["stream"] = true
	resp := open(t, in, "/v1/completions", body)
	defer func() { _ = resp.Body.Close() }()
	if !bufio.NewScanner(resp.Body).Scan() {
		t.Fatal("the stream did not begin")
	}
	work := func() int {
		code, got := get(t, in, "/stats")
		if code != http.StatusOK {
			t.Fatalf("status %d: %v", code, got)
		}
		return int(got["running"].(float64) + got["waiting"].(float64))
	}
	if n := work(); n != 16 {
		t.Errorf("%d of 16 texts are at work when the stream begins", n)
	}
	gone := time.Now()
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	for work() > 0 {
		if since := time.Since(gone); since > whole/2 {
			t.Fatalf("the work goes on %v after the client has gone; whole it takes %v", since, whole)
		}
	}
}

// refusals asks for what is not understood: each is refused by name, in the dialect's own form.
func refusals(t *testing.T, in loaders.Instance) {
	for name, c := range map[string]struct {
		path  string
		body  map[string]any
		param string
	}{
		"unknown field":              {"/v1/completions", map[string]any{"prompt": "x", "nonsense": 1}, "nonsense"},
		"temperature":                {"/v1/completions", map[string]any{"prompt": "x", "temperature": -1}, "temperature"},
		"n":                          {"/v1/completions", map[string]any{"prompt": "x", "n": 1000}, "n"},
		"best_of":                    {"/v1/completions", map[string]any{"prompt": "x", "best_of": 4}, "best_of"},
		"logit_bias":                 {"/v1/completions", map[string]any{"prompt": "x", "logit_bias": map[string]any{"99999999": 1}}, "logit_bias"},
		"empty prompt":               {"/v1/completions", map[string]any{"prompt": ""}, "prompt"},
		"no prompt":                  {"/v1/completions", map[string]any{}, "prompt"},
		"strange token":              {"/v1/completions", map[string]any{"prompt": []int{99999999}}, "prompt"},
		"too long":                   {"/v1/completions", map[string]any{"prompt": strings.Repeat("x", 600)}, "prompt"},
		"stops":                      {"/v1/completions", map[string]any{"prompt": "x", "stop": 1}, "stop"},
		"stream_options":             {"/v1/completions", map[string]any{"prompt": "x", "stream_options": map[string]any{}, "stream": 3}, "stream"},
		"no messages":                {"/v1/chat/completions", map[string]any{"messages": []any{}}, "messages"},
		"no role":                    {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"content": "x"}}}, "messages"},
		"an image":                   {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": []any{map[string]any{"type": "image_url"}}}}}, "messages"},
		"the template's own":         {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "wizard", "content": "x"}}}, "messages"},
		"a JSON schema":              {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}}, "response_format": map[string]any{"type": "json_object"}}, "response_format"},
		"a template of the client's": {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}}, "chat_template": "{{ 1 }}"}, "chat_template"},
		"a template in kwargs": {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}},
			"chat_template_kwargs": map[string]any{"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"}}, "chat_template_kwargs.chat_template"},
		"top_logprobs alone": {"/v1/chat/completions", map[string]any{"messages": []any{map[string]any{"role": "user", "content": "x"}}, "top_logprobs": 2}, "top_logprobs"},
	} {
		code, got := ask(t, in, c.path, c.body)
		e, _ := got["error"].(map[string]any)
		if code != http.StatusBadRequest || e["param"] != c.param || e["message"] == "" {
			t.Errorf("%s: status %d, %v; want 400 that names %s", name, code, got, c.param)
		}
	}
	if code, _ := ask(t, in, "/v1/embeddings", map[string]any{"input": "x"}); code != http.StatusNotFound {
		t.Errorf("a language model embeds: status %d", code)
	}
}

// TestEveryKind loads one model of each kind and asks for what it can do; encoders must give what torch itself gave when their
// copies were exported. TestConformance does so with a model in several files, and TestTrustedCode with one of half the precision.
func TestEveryKind(t *testing.T) {
	dir, references := models(t), exported(t)
	writes := func(prompt any) func(t *testing.T, in loaders.Instance) {
		return func(t *testing.T, in loaders.Instance) {
			code, got := ask(t, in, "/v1/completions", map[string]any{"prompt": prompt, "max_tokens": 5, "temperature": 0})
			if code != http.StatusOK {
				t.Fatalf("status %d: %v", code, got)
			}
			_ = got["choices"].([]any)[0].(map[string]any)["text"].(string)
		}
	}
	for _, c := range []struct {
		model, class string
		api          registry.API
		format       registry.Format
		check        func(t *testing.T, in loaders.Instance)
	}{
		{"bert", "BertForMaskedLM", registry.APIFillMask, registry.FormatTransformersPT, func(t *testing.T, in loaders.Instance) {
			filled(t, in, expected(t, filepath.Join(references, "filler")))
		}},
		{"classifier", "BertForSequenceClassification", registry.APIClassify, registry.FormatSafetensors, func(t *testing.T, in loaders.Instance) {
			classified(t, in, expected(t, filepath.Join(references, "classifier")))
		}},
		{"bert-plain", "BertModel", registry.APIEmbeddings, registry.FormatSafetensors, func(t *testing.T, in loaders.Instance) {
			alike(t, in, expected(t, filepath.Join(references, "embedder")), 0.9999)
		}},
		{"t5", "T5ForConditionalGeneration", registry.APICompletions, registry.FormatSafetensors, writes("translate")},
		{"moe", "Qwen3MoeForCausalLM", registry.APICompletions, registry.FormatSafetensors, writes([]string{"a", "bcd"})},
		{"mamba", "Mamba2ForCausalLM", registry.APICompletions, registry.FormatSafetensors, writes([]string{"a", "bcd"})},
	} {
		t.Run(c.model, func(t *testing.T) {
			t.Parallel()
			s := spec(filepath.Join(dir, c.model), nil)
			s.Model.ModelFormat = c.format
			in := mustLoad(t, s)
			if ep := in.Endpoint(); ep.ModelClass != c.class || !slices.Contains(ep.APIs, c.api) {
				t.Errorf("the endpoint says %+v, want %s that answers %s", ep, c.class, c.api)
			}
			c.check(t, in)
		})
	}
}
