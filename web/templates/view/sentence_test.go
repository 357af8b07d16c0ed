package view

import (
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestSentence(t *testing.T) {
	for in, want := range map[string]string{
		"there is nothing at /x; correct source_path": "There is nothing at /x; correct source_path",
		"the Hub has no model a/b":                    "The Hub has no model a/b",
		"mini is in use (ready); unload it first":     "mini is in use (ready); unload it first", // a model's name
		"a is ready to be used":                       "a is ready to be used",                   // so is this
		"the":                                         "the",
		"the model":                                   "the model", // two words are as likely a name
		"":                                            "",
		"/srv/x: it is no file":                       "/srv/x: it is no file",
	} {
		if got := Sentence(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// A failure and a plan that fails for the same reason are told once.
func TestPlanIsNews(t *testing.T) {
	const msg = "the Hub has no model a/b"
	failed := ModelPage{Runtime: registry.Runtime{Failure: &registry.Failure{Msg: msg}}}
	if failed.PlanIsNews() {
		t.Error("there is no plan")
	}
	failed.Plan = &registry.Plan{Problem: &registry.Problem{Msg: msg}}
	if failed.PlanIsNews() {
		t.Error("the plan says what the failure says")
	}
	failed.Plan = &registry.Plan{Problem: &registry.Problem{Msg: "The model cannot be planned", Failure: &registry.Failure{Msg: msg}}}
	if failed.PlanIsNews() {
		t.Error("the plan has the failure in it")
	}
	failed.Plan = &registry.Plan{Problem: &registry.Problem{Msg: "No engine is here"}}
	if !failed.PlanIsNews() {
		t.Error("the plan says something else")
	}
	failed.Plan = &registry.Plan{Sentence: "Fits in main memory now."}
	if !failed.PlanIsNews() {
		t.Error("the model can be loaded by now")
	}
}

// Who could leave is told where that could help.
func TestHolderSays(t *testing.T) {
	idle := registry.Holder{ModelID: "a", Bytes: 1 << 30, Evictable: true}
	if got := HolderSays(idle, registry.Shortage{Needed: 2 << 30, Total: 4 << 30}); got != "holds 1 GiB, idle, could leave" {
		t.Error(got)
	}
	if got := HolderSays(idle, registry.Shortage{Needed: 9 << 30, Total: 4 << 30}); got != "holds 1 GiB" {
		t.Error(got)
	}
	busy := registry.Holder{ModelID: "b", Bytes: 1 << 30, Promised: true}
	if got := HolderSays(busy, registry.Shortage{Needed: 2 << 30, Total: 4 << 30}); got != "is promised 1 GiB, cannot be evicted" {
		t.Error(got)
	}
}

func TestChangedSinceLoad(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	p := ModelPage{Record: registry.Record{UpdatedAt: now}}
	if p.ChangedSinceLoad() {
		t.Error("it is not loaded")
	}
	p.Runtime.ReadyAt = now.Add(time.Second)
	if p.ChangedSinceLoad() {
		t.Error("it was loaded afterwards")
	}
	p.Runtime.ReadyAt = now.Add(-time.Second)
	if !p.ChangedSinceLoad() {
		t.Error("it was changed afterwards")
	}
	// While it was being loaded: before it was ready, and after its configuration was read.
	p.Runtime.ReadyAt, p.Runtime.ConfigVersion, p.Record.Version = now.Add(time.Second), 3, 4
	if !p.ChangedSinceLoad() {
		t.Error("it was changed while it was being loaded")
	}
	p.Runtime.ConfigVersion = 4
	if p.ChangedSinceLoad() {
		t.Error("it was loaded with what it is now")
	}
}

// Nothing is fetched of what lies on this machine.
func TestLocalFilesAreHere(t *testing.T) {
	local := Preview{Source: registry.SourceLocal, Bytes: 94 << 20}
	if got := local.Here(); got != "all on this machine" {
		t.Error(got)
	}
	hub := Preview{Source: registry.SourceHuggingFace, Bytes: 94 << 20}
	if got := hub.Here(); got != "to be fetched" {
		t.Error(got)
	}
}

func TestAuditWords(t *testing.T) {
	for _, c := range []struct {
		in        registry.AuditEntry
		did, what string
	}{
		{registry.AuditEntry{Action: "model.load", Subject: "model:team/a", Detail: "/api/v1/models/:id/wake"}, "load", "team/a"},
		{registry.AuditEntry{Action: "account.own", Subject: "user:ben", Detail: "sign in"}, "account", "ben (sign in)"},
		{registry.AuditEntry{Action: "some.new", Subject: "manifest"}, "some.new", "manifest"},
	} {
		if did, what := AuditWords(c.in); did != c.did || what != c.what {
			t.Errorf("%+v became %q %q", c.in, did, what)
		}
	}
}
