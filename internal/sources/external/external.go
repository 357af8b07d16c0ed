// Package external is the source of models that run elsewhere: services that answer the OpenAI API at a base URL. There is
// nothing to fetch. What it adds are the rules of which services may be named, and by whom.
package external

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
)

// Options say which services may be named.
type Options struct {
	// AllowHosts are the hosts that everybody who may register models may name: llm.example.com, or *.example.com for all
	// below it. Any other is for admins.
	AllowHosts []string
	// AllowPrivate permits addresses of this machine and of private networks, and a key without encryption to them.
	AllowPrivate bool
}

// Source implements sources.Source, Offerer, Checker and Gatekeeper.
type Source struct{ o Options }

var (
	_ sources.Source     = (*Source)(nil)
	_ sources.Offerer    = (*Source)(nil)
	_ sources.Checker    = (*Source)(nil)
	_ sources.Gatekeeper = (*Source)(nil)
)

// New returns the source.
func New(o Options) *Source { return &Source{o: o} }

// Type returns SourceExternal.
func (s *Source) Type() registry.SourceType { return registry.SourceExternal }

// Resolve asks nobody: a service has no files. The revision is a fingerprint of the address and the model's name there.
func (s *Source) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return sources.Snapshot{}, err
	}
	if errs := s.Check(ref); len(errs) > 0 {
		return sources.Snapshot{}, &registry.Error{Code: registry.CodeInvalid, Op: "external.Resolve", Msg: "The service cannot be used", Fields: errs}
	}
	model, _ := ref.Params["model"].(string)
	sum := sha256.Sum256([]byte(strings.TrimRight(ref.Path, "/") + "\x00" + model))
	return sources.Snapshot{Ref: ref, Revision: hex.EncodeToString(sum[:8]), Root: ref.Path,
		Facts: registry.Facts{Format: ref.Format, Notes: []string{"Runs elsewhere: there is nothing to fetch."}}}, nil
}

// Fetch brings nothing here.
func (s *Source) Fetch(ctx context.Context, snap sources.Snapshot, report func(registry.Progress)) (registry.Artifact, error) {
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	report(registry.Progress{Stage: registry.StageFetch, Unit: registry.UnitBytes, Msg: "Runs elsewhere: there is nothing to fetch."})
	report(registry.Progress{Stage: registry.StageVerify, Unit: registry.UnitBytes})
	if err := ctx.Err(); err != nil {
		return registry.Artifact{}, err
	}
	return registry.Artifact{Path: snap.Root, Revision: snap.Revision, Facts: snap.Facts, At: time.Now().UTC()}, nil
}

// Offers says that the format does not matter, so that nobody has to know it to look a service up.
func (s *Source) Offers(context.Context, sources.Ref) ([]registry.Offer, error) {
	return []registry.Offer{{Format: registry.FormatSafetensors}}, nil
}

// Check refuses addresses of this machine and of private networks, as far as they are written as numbers, unless they
// are allowed; and a key that would travel without encryption. Names are looked at once they are resolved, when the model
// is loaded.
func (s *Source) Check(ref sources.Ref) []registry.FieldError {
	u, err := url.Parse(ref.Path)
	if err != nil || u.Hostname() == "" {
		return []registry.FieldError{{Field: "source_path", Msg: "must be a base URL that starts with http:// or https:// and names a host"}}
	}
	var errs []registry.FieldError
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if ip, err := netip.ParseAddr(host); !s.o.AllowPrivate && (host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && !netaddr.Public(ip)) {
		errs = append(errs, registry.FieldError{Field: "source_path", Msg: fmt.Sprintf(
			"leads to %s, which is an address of this machine or of a private network. An admin can allow these for the server with --external-private", host)})
	}
	if key, _ := ref.Params["api_key"].(string); key != "" && u.Scheme == "http" && !s.o.AllowPrivate {
		errs = append(errs, registry.FieldError{Field: "source_path", Msg: "begins with http://, so that everybody on the way could read api_key; use https://"})
	}
	return errs
}

// AdminOnly refuses hosts that are not on the list. An admin may name any.
func (s *Source) AdminOnly(ref sources.Ref) []registry.FieldError {
	u, err := url.Parse(ref.Path)
	if err != nil {
		return nil // Check says it
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	for _, allowed := range s.o.AllowHosts {
		allowed = strings.ToLower(allowed)
		if suffix, ok := strings.CutPrefix(allowed, "*"); ok && strings.HasPrefix(suffix, ".") && strings.HasSuffix(host, suffix) && len(host) > len(suffix) {
			return nil
		}
		if allowed == host || strings.EqualFold(allowed, u.Host) {
			return nil
		}
	}
	return []registry.FieldError{{Field: "source_path", Msg: fmt.Sprintf(
		"names the service %s, which only an admin may do. Ask one to register the model, or to put the host on the server's list with --external-hosts", u.Host)}}
}
