package external

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

func ref(path string, params map[string]any) sources.Ref {
	return sources.Ref{Path: path, Format: registry.FormatSafetensors, Params: params}
}

// Nothing is asked and nothing is fetched; the revision tells services and models apart.
func TestResolve(t *testing.T) {
	s := New(Options{})
	one, err := s.Resolve(t.Context(), ref("https://llm.example.com/v1", nil))
	if err != nil || one.Revision == "" || one.Bytes != 0 || len(one.Files) != 0 {
		t.Fatalf("%+v, %v", one, err)
	}
	revisions := map[string]string{}
	for name, r := range map[string]sources.Ref{
		"it": ref("https://llm.example.com/v1", nil), "another model": ref("https://llm.example.com/v1", map[string]any{"model": "m"}), "another service": ref("https://other.example.com", nil),
	} {
		snap, err := s.Resolve(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if was, twice := revisions[snap.Revision]; twice {
			t.Errorf("%s and %s have one revision", was, name)
		}
		revisions[snap.Revision] = name
	}
	var stages []registry.StageName
	art, err := s.Fetch(t.Context(), one, func(p registry.Progress) { stages = append(stages, p.Stage) })
	if err != nil || art.Revision != one.Revision || art.At.IsZero() || len(stages) != 2 || stages[0] != registry.StageFetch || stages[1] != registry.StageVerify {
		t.Errorf("%+v, %v, stages %v", art, err, stages)
	}
	dead, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Resolve(dead, one.Ref); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.Fetch(dead, one, func(registry.Progress) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if offers, err := s.Offers(t.Context(), one.Ref); err != nil || len(offers) != 1 || offers[0].Format == "" {
		t.Errorf("offers %v, %v", offers, err)
	}
}

func TestCheck(t *testing.T) {
	key := map[string]any{"api_key": "secret:x"}
	for _, c := range []struct {
		path    string
		params  map[string]any
		private bool
		word    string // of the refusal; "" for none
	}{
		{"https://llm.example.com", key, false, ""},
		{"http://llm.example.com", nil, false, ""},
		{"http://llm.example.com", key, false, "https://"},
		{"http://10.0.0.5:8000", key, true, ""},
		{"http://10.0.0.5:8000", nil, false, "private network"},
		{"http://localhost:8000", nil, false, "private network"},
		{"http://LOCALHOST.:8000", nil, false, "private network"},
		{"http://[::1]:8000", nil, false, "private network"},
		{"http://169.254.169.254", nil, false, "private network"},
		{"http://100.64.0.1", nil, false, "private network"},
		{"http://[::ffff:127.0.0.1]", nil, false, "private network"},
		{"http://8.8.8.8", nil, false, ""},
		{"nonsense", nil, true, "base URL"},
	} {
		errs := New(Options{AllowPrivate: c.private}).Check(ref(c.path, c.params))
		if c.word == "" && len(errs) > 0 || c.word != "" && (len(errs) != 1 || !strings.Contains(errs[0].Msg, c.word)) {
			t.Errorf("%s: %v, want %q", c.path, errs, c.word)
		}
	}
}

func TestAdminOnly(t *testing.T) {
	s := New(Options{AllowHosts: []string{"llm.example.com", "*.corp.example", "10.0.0.5:8000"}})
	for path, free := range map[string]bool{
		"https://llm.example.com/v1": true, "https://LLM.example.com:8443": true, "https://a.corp.example": true, "https://a.b.corp.example": true, "http://10.0.0.5:8000": true,
		"https://corp.example": false, "https://evilcorp.example": false, "https://llm.example.com.evil.net": false, "http://10.0.0.5:9000": false, "https://api.example.org": false,
	} {
		if errs := s.AdminOnly(ref(path, nil)); (len(errs) == 0) != free {
			t.Errorf("%s: %v, free is not %t", path, errs, free)
		}
	}
	if errs := New(Options{}).AdminOnly(ref("https://llm.example.com", nil)); len(errs) != 1 || !strings.Contains(errs[0].Msg, "admin") {
		t.Errorf("without a list: %v", errs)
	}
}
