package view

import (
	"encoding/hex"
	"hash/fnv"
	"net/url"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ModelURL is the console's page of a model. The id is percent-encoded in one path segment:
// /models/meta-llama%2FLlama-2-7b-chat-hf. Ids made of dots alone are encoded too, or a browser would resolve them.
func ModelURL(id string) string { return "/models/" + Segment(id) }

// ModelAction is the address below a model's page that does or shows something: load, unload, cancel, delete, edit,
// plan, approve.
func ModelAction(id, action string) string { return ModelURL(id) + "/" + action }

// OperationURL is the page of an operation.
func OperationURL(id string) string { return "/operations/" + Segment(id) }

// EngineURL is the page of an engine.
func EngineURL(name string) string { return "/engines/" + Segment(name) }

// EngineAction is the address below an engine's page that does something: install, test, remove.
func EngineAction(name, action string) string { return EngineURL(name) + "/" + action }

// EngineRemoveURL is where a removal is asked for; version "" is all of them.
func EngineRemoveURL(name, version string) string {
	return EngineAction(name, "remove") + "?" + url.Values{"version": {version}}.Encode()
}

// LiveURL is the address of the console's event stream for one page: LiveURL("model", "id", "qwen3-8b").
func LiveURL(page string, pairs ...string) string {
	q := url.Values{"page": {page}}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return "/ui/events?" + q.Encode()
}

// Segment percent-encodes s as one path segment.
func Segment(s string) string {
	if strings.Trim(s, ".") == "" {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// RowID is the id attribute of a model's row in a list: ids may hold anything, attributes that scripts and CSS
// selectors use may not.
func RowID(id string) string {
	h := fnv.New64a()
	h.Write([]byte(id))
	return string(hex.AppendEncode([]byte("m-"), h.Sum(nil)))
}

// storedQuery names a stored revision in an address.
func storedQuery(a registry.StoredArtifact) string {
	return url.Values{"source_type": {string(a.Source)}, "source_path": {a.Path}, "revision": {a.Revision}}.Encode()
}

// SecretURL is what is done with a secret: delete.
func SecretURL(s registry.Secret, action string) string {
	u := "/secrets/" + Segment(s.Name) + "/" + action
	if s.Team != "" {
		u += "?" + url.Values{"team": {s.Team}}.Encode()
	}
	return u
}
