package view

import (
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// openings are words that messages begin with. Anything else at the beginning may be a name (a model, a file, a field),
// and names keep the case that they have.
var openings = []string{"an", "another", "cannot", "it", "its", "no", "not", "nothing", "only", "some", "that", "the", "there", "these", "this", "too", "what"}

// Sentence writes a message as a sentence: errors begin in lower case where they are made, because they are put together
// from parts.
func Sentence(s string) string {
	first, rest, ok := strings.Cut(s, " ")
	if ok && slices.Contains(openings, first) && strings.Contains(rest, " ") {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	return s
}

// PlanIsNews tells whether the plan says anything that the failure has not said already.
func (p ModelPage) PlanIsNews() bool {
	if p.Plan == nil {
		return false
	}
	f := p.Runtime.Failure
	return f == nil || p.Plan.Problem == nil || !sameMessage(*p.Plan.Problem, *f)
}

// ChangedSinceLoad tells whether the configuration is newer than the one that the instance was loaded with.
func (p ModelPage) ChangedSinceLoad() bool {
	if v := p.Runtime.ConfigVersion; v != 0 {
		return p.Record.Version > v
	}
	// It was loaded by a server that did not note the version.
	return !p.Runtime.ReadyAt.IsZero() && p.Record.UpdatedAt.After(p.Runtime.ReadyAt)
}

func sameMessage(p registry.Problem, f registry.Failure) bool {
	msg := p.Msg
	if p.Failure != nil && p.Failure.Msg != "" {
		msg = p.Failure.Msg
	}
	return msg == f.Msg || p.Msg == f.Msg
}

// auditWords are the actions of the audit in a word or two, such as stand before what they were done to.
var auditWords = map[string]string{
	"account.own": "account", "token.own": "token", "user.manage": "user", "team.manage": "team", "member.manage": "members of",
	"model.register": "register", "model.edit": "change", "model.load": "load", "model.unload": "unload", "model.delete": "delete",
	"model.fetch": "fetch", "model.override": "load despite too little memory", "registration.approve": "registration of",
	"operation.cancel": "cancel", "engine.install": "install", "manifest.import": "import", "manifest.export": "export",
	"secret.manage": "secret", "storage.delete": "delete files", "storage.manage": "storage",
}

// AuditWords writes an entry of the audit: what was done, and to what.
func AuditWords(a registry.AuditEntry) (did, what string) {
	did, ok := auditWords[a.Action]
	if !ok {
		did = a.Action
	}
	_, what, ok = strings.Cut(a.Subject, ":")
	if !ok {
		what = a.Subject
	}
	if a.Detail != "" && !strings.HasPrefix(a.Detail, "/") {
		what += " (" + a.Detail + ")"
	}
	return did, what
}
