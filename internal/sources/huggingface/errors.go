package huggingface

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
)

// errSlow ends a request to the API that takes too long.
var errSlow = errors.New("no answer in time")

// passing marks an error as one that is about the Hub's state and not about the model: what the cache holds may be used
// instead.
type passing struct{ error }

func (p passing) Unwrap() error { return p.error }

func isPassing(err error) bool {
	var p passing
	return errors.As(err, &p)
}

// worthRetrying says whether to ask again, and when: at the Hub's own hint if it is near, else after pause.
func worthRetrying(err error, pause time.Duration) (time.Duration, bool) {
	var e *registry.Error
	if !isPassing(err) || !errors.As(err, &e) {
		return 0, false
	}
	if r := redirectFault(err); r != nil {
		return 0, false
	}
	var tlsErr *tls.CertificateVerificationError
	var dns *net.DNSError
	if errors.As(err, &tlsErr) || errors.As(err, &dns) && dns.IsNotFound {
		return 0, false
	}
	wait := max(e.RetryAfter, pause)
	return wait, wait <= maxPause
}

// fail makes an error with a diagnosis: what happened to what, and what to do next, which is shown after it.
func fail(kind registry.FailureKind, hint, format string, args ...any) *registry.Error {
	msg := fmt.Sprintf(format, args...)
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "ask the Hub", Msg: msg + ". " + hint + ".",
		Failure: &registry.Failure{Kind: kind, Msg: msg, Hint: hint}}
}

func problem(code registry.Code, format string, args ...any) *registry.Error {
	e := registry.Errorf(code, format, args...)
	e.Op = "ask the Hub"
	return e
}

// The texts by which the Hub tells apart what its status codes do not.
const (
	saysBadToken = "invalid credentials in authorization header"
	saysDisabled = "access to this resource is disabled"
)

// explain turns an answer that is no success into an error. name is the file that was asked for, "" for the repository.
// It follows hf_raise_for_status of the Python client, and like it believes X-Error-Code before the status.
func (s *Source) explain(resp *http.Response, l *look, name string) error {
	code, said := resp.Header.Get("X-Error-Code"), resp.Header.Get("X-Error-Message")
	status := resp.StatusCode
	switch {
	case code == "GatedRepo":
		return s.gated(l, status)
	case code == "RevisionNotFound":
		return &noRevision{problem(registry.CodeNotFound, "%s has no branch, tag or commit %q on the Hub; correct the revision", l.id, clip(l.revision))}
	case code == "EntryNotFound":
		return fail(registry.FailureMissingFile, "Look the model up again", "%s is not in %s at this revision", clip(name), l.id)
	case strings.Contains(strings.ToLower(said), saysDisabled):
		return problem(registry.CodeNotFound, "the Hub has disabled access to %s: %q; choose another model, or ask its publisher", l.id, clip(said))
	case strings.Contains(strings.ToLower(said), saysBadToken):
		return s.badToken(l)
	case code == "RepoNotFound" || status == http.StatusUnauthorized || status == http.StatusNotFound:
		return s.notFound(l, code)
	case status == http.StatusForbidden:
		return l.tokenError("lacks the permission for %s: %q; give it read access to the repository in the Hub's settings", l.id, clip(s.hide(l, said)))
	case status == http.StatusTooManyRequests:
		e := problem(registry.CodeBusy, "the Hub asks for a pause: too many requests from this address%s", s.hint(resp.Header))
		if l.token == "" {
			e.Msg += "; with a token (HF_TOKEN) more are allowed"
		}
		e.RetryAfter = s.pause(resp.Header)
		return passing{e}
	case status == http.StatusRequestTimeout || status >= 500:
		e := problem(registry.CodeUnavailable, "the Hub at %s has a problem of its own (status %d)%s; try again later", s.endpoint.Host, status, s.hint(resp.Header))
		e.RetryAfter = s.pause(resp.Header)
		return passing{e}
	case status >= 300 && status < 400:
		return notAHub(s.endpoint, fmt.Sprintf("it redirects (status %d) without saying where to", status))
	}
	return notAHub(s.endpoint, fmt.Sprintf("it answered with status %d: %q", status, clip(s.hide(l, said))))
}

// noRevision is told more about before it is returned.
type noRevision struct{ err *registry.Error }

func (e *noRevision) Error() string { return e.err.Error() }
func (e *noRevision) Unwrap() error { return e.err }

// withRevisions adds the names of the branches and tags to an error that says that there is no such one.
func (s *Source) withRevisions(ctx context.Context, l *look, err error) error {
	var none *noRevision
	if !errors.As(err, &none) {
		return err
	}
	const show = 8
	names := s.revisions(ctx, l)
	if len(names) == 0 {
		return none.err
	}
	shown := make([]string, 0, show)
	for _, n := range names[:min(len(names), show)] {
		shown = append(shown, clip(n))
	}
	none.err.Msg += "; it has " + strings.Join(shown, ", ")
	if more := len(names) - show; more > 0 {
		none.err.Msg += fmt.Sprintf(" and %d more", more)
	}
	return none.err
}

func (s *Source) gated(l *look, status int) error {
	page := s.endpoint.JoinPath(l.id).String()
	if l.token == "" || status == http.StatusUnauthorized {
		return fail(registry.FailureGated,
			"Accept its conditions at "+page+", make a token in the Hub's settings, and give it as custom_loader_params.auth_token or set HF_TOKEN",
			"%s is gated: the Hub gives it only to accounts that have accepted its conditions", l.id)
	}
	return fail(registry.FailureGated,
		"Ask for access or accept the conditions at "+page+" with the account of the token, and give the token read access to gated repositories",
		"%s is gated, and the account of %s is not among those that may have it", l.id, l.whose())
}

// whose names the token without telling it.
func (l *look) whose() string {
	if l.own {
		return "custom_loader_params.auth_token"
	}
	return "the token of this machine (HF_TOKEN or its file)"
}

// tokenError is CodeInvalid about the token: on its field when the model brings it.
func (l *look) tokenError(format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	switch {
	case l.own:
		return &registry.Error{Code: registry.CodeInvalid, Op: "ask the Hub", Msg: "the Hub refuses the token",
			Fields: []registry.FieldError{{Field: "custom_loader_params.auth_token", Msg: msg}}}
	case l.token == "":
		return problem(registry.CodeInvalid, "without a token the Hub refuses: it %s", msg)
	}
	return problem(registry.CodeInvalid, "%s %s", l.whose(), msg)
}

func (s *Source) badToken(l *look) error {
	return l.tokenError("is not known to the Hub at %s: it is mistyped, expired or revoked; make a new one in the Hub's settings", s.endpoint.Host)
}

// notFound says what a 401 or 404 can mean: the Hub does not tell a stranger which private repositories there are.
func (s *Source) notFound(l *look, code string) error {
	switch {
	case code == "" && l.token == "":
		return problem(registry.CodeNotFound, "the Hub at %s has no model %s for visitors without a token: it may be mistyped, private or gone; correct source_path, or set custom_loader_params.auth_token", s.endpoint.Host, l.id)
	case l.token == "":
		return problem(registry.CodeNotFound, "the Hub has no model %s, or it is private: without a token both look the same; correct source_path, or set custom_loader_params.auth_token or HF_TOKEN", l.id)
	}
	return problem(registry.CodeNotFound, "the Hub has no model %s that %s may see: it may be mistyped, or private to somebody else; correct source_path or the token", l.id, l.whose())
}

// tooLarge is the error of a file that is not given by ranges of plain HTTP. The Hub's own client gets it by Xet, into the
// same cache.
func (s *Source) tooLarge(l *look, f registry.File) error {
	return problem(registry.CodeUnsupported, "%s has %s, and the Hub's file server does not give a file that large by HTTP (status 400); choose another quantisation, or fetch it once with the Hub's own client (pip install huggingface_hub hf_xet; HF_HUB_CACHE=%s hf download %s %s), whose cache is used here, and fetch the model again then", clip(f.Path), registry.Bytes(f.Size), s.cache, l.id, clip(f.Path))
}

// notAHub is the error of an answer that no Hub gives.
func notAHub(endpoint *url.URL, what string) error {
	return passing{problem(registry.CodeUnavailable,
		"what answers at %s is not the Hub: %s; check HF_ENDPOINT, the proxy, and whether this network asks for a sign-in", endpoint.Host, what)}
}

// unreachable explains why no answer came. Addresses are left out of it: signed ones are secrets.
func (s *Source) unreachable(ctx context.Context, l *look, err error) error {
	if errors.Is(context.Cause(ctx), errSlow) || errors.Is(err, errSlow) {
		return passing{problem(registry.CodeUnavailable, "the Hub at %s did not answer within %s; try again later", s.endpoint.Host, apiPatience)}
	}
	if err := ended(ctx, err); err != nil {
		return err
	}
	var ours *registry.Error
	if errors.As(err, &ours) { // the transport refused to connect there
		return ours
	}
	if r := redirectFault(err); r != nil {
		return &registry.Error{Code: registry.CodeUnavailable, Op: "ask the Hub", Err: r,
			Msg: fmt.Sprintf("the answer of the Hub at %s about %s is not followed: %s; check HF_ENDPOINT and the proxy", s.endpoint.Host, l.id, r.msg)}
	}
	var (
		cert   *tls.CertificateVerificationError
		alien  x509.UnknownAuthorityError
		record tls.RecordHeaderError
		dns    *net.DNSError
		op     *net.OpError
		slow   net.Error
	)
	host := s.endpoint.Host
	what := "the connection failed: " + bare(err)
	switch {
	case errors.As(err, &cert), errors.As(err, &alien):
		what = "its certificate is not trusted here; a proxy that looks into connections may be in between: add its certificate to this machine's"
	case errors.As(err, &record):
		what = "it does not speak TLS; check whether HF_ENDPOINT should begin with http://"
	case errors.As(err, &op) && op.Op == "proxyconnect", strings.Contains(bare(err), "Proxy Authentication Required"):
		what = "the proxy (HTTPS_PROXY, HTTP_PROXY) refused or cannot be reached: " + bare(err)
	case errors.As(err, &dns):
		what = "the name " + clip(dns.Name) + " is not known; this machine may be offline"
	case errors.As(err, &slow) && slow.Timeout():
		what = "it did not answer in time"
	}
	e := problem(registry.CodeUnavailable, "the Hub at %s cannot be reached: %s. Set HF_HUB_OFFLINE=1 to use only what the cache holds.", host, what)
	e.Err = withoutAddress(err)
	return passing{e}
}

// bare is an error's text without the address that net/http puts in front of it.
func bare(err error) string { return clip(withoutAddress(err).Error()) }

func withoutAddress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// hide takes the token out of what somebody else wrote.
func (s *Source) hide(l *look, text string) string {
	if l.token == "" {
		return text
	}
	return strings.ReplaceAll(text, l.token, registry.Redaction)
}

// pause is how long an answer asks to wait; 0 when it does not say.
func (s *Source) pause(h http.Header) time.Duration { return fetch.Hint(h, s.now()) }

func (s *Source) hint(h http.Header) string {
	if d := s.pause(h); d > 0 {
		return fmt.Sprintf(" for %s", d)
	}
	return ""
}
