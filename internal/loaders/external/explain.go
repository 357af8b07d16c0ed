package external

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// errSlow is the cause of a question that took too long.
var errSlow = errors.New("no answer in time")

// fault makes the error of a service. The cause is left out: it may quote an address or a header.
func fault(kind registry.FailureKind, msg, hint string) error {
	f := &registry.Failure{Kind: kind, Msg: msg, Hint: hint}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "external", Msg: msg, Failure: f}
}

// unreachable says why there was no answer.
func (c *client) unreachable(ctx context.Context, err error) error {
	host := c.s.base.Host
	say := func(hint, format string, args ...any) error {
		return fault(registry.FailureUnreachable, c.scrub(fmt.Sprintf(format, args...)), hint)
	}
	var (
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		dns       *net.DNSError
	)
	switch {
	case errors.Is(context.Cause(ctx), errSlow):
		return say("Try again when the service is less busy, or look whether a firewall stands in between.", "%s did not answer within %s", host, c.timeout)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errPrivate):
		return say("An admin can allow this for the server with --external-private.", "%s leads to %s; nothing was sent there", host, errPrivate)
	case errors.As(err, &authority):
		return say("Install the certificate of the authority that signed it on this machine, or have the service use one that machines know.", "The certificate of %s is signed by an authority that this machine does not know", host)
	case errors.As(err, &name):
		return say("Use the name that the certificate is for in source_path.", "The certificate that %s shows is for another name", host)
	case errors.As(err, &invalid):
		return say("The service's certificate must be renewed, or this machine's clock set.", "The certificate of %s is not valid: %v", host, invalid)
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return say("If the service has no encryption, source_path begins with http://.", "%s does not speak TLS", host)
	case errors.As(err, &dns) && dns.IsNotFound:
		return say("Correct source_path.", "There is no host named %s", c.s.base.Hostname())
	case errors.As(err, &dns):
		return say("Look at this machine's name servers.", "The name %s could not be looked up: %s", c.s.base.Hostname(), dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED):
		return say("Start the service, or correct the port in source_path.", "Nothing listens at %s", host)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return say("Look whether the service runs, and at its log.", "%s broke the connection off before it had answered", host)
	}
	return say("Look whether the service runs and can be reached from this machine.", "%s cannot be reached: %v", host, err)
}

// refused explains a status other than 200.
func (c *client) refused(r reply, path string) error {
	host := c.s.base.Host
	switch {
	case r.status == http.StatusUnauthorized || r.status == http.StatusForbidden:
		// What the service says is left out: it may quote the key.
		if c.s.key == "" {
			return fault(registry.FailureParameter, host+" asks for a key", "Store it with `llmm secret set NAME` and set api_key in custom_loader_params to secret:NAME.")
		}
		return fault(registry.FailureParameter, fmt.Sprintf("%s refused the key (status %d)", host, r.status), "Put a valid key into the secret that api_key in custom_loader_params names.")
	case r.status == http.StatusNotFound || r.status == http.StatusMethodNotAllowed:
		return fault(registry.FailureUnreachable, fmt.Sprintf("%s has no %s", host, path), "source_path must be the base URL of an OpenAI-compatible API, the part before /v1. Look at the service's documentation.")
	case r.status >= 300 && r.status < 400:
		return fault(registry.FailureUnreachable, fmt.Sprintf("%s sends requests on to %s, which is not followed", host, clip(r.location)), "If that is the service's address, put it into source_path.")
	case r.status == http.StatusTooManyRequests:
		return fault(registry.FailureUnreachable, host+" takes no more requests now (status 429)"+c.said(r), "Wait, or look at the limits of the account.")
	}
	return fault(registry.FailureUnreachable, fmt.Sprintf("%s answered %s with status %d%s", host, path, r.status, c.said(r)), "Look at the service's status page or log.")
}

// said quotes the message in a service's answer: ": …", or "" if it has none.
func (c *client) said(r reply) string {
	if m := message(r.body); m != "" {
		return ": " + c.scrub(clip(m))
	}
	return ""
}

// message finds the words in an error of a service: {"error": {"message": …}}, {"error": "…"}, {"message": "…"} or
// {"detail": "…"}. "" if there are none.
func message(body []byte) string {
	var v struct {
		Error   json.RawMessage `json:"error"`
		Message string          `json:"message"`
		Detail  string          `json:"detail"`
	}
	if err := json.Unmarshal(body, &v); err != nil && v.Error == nil {
		return ""
	}
	var inner struct {
		Message string `json:"message"`
	}
	var s string
	switch {
	case json.Unmarshal(v.Error, &inner) == nil && inner.Message != "":
		return inner.Message
	case json.Unmarshal(v.Error, &s) == nil && s != "":
		return s
	case v.Message != "":
		return v.Message
	}
	return v.Detail
}

// scrub takes the key out of words that came from elsewhere.
func (c *client) scrub(s string) string {
	if c.s.key == "" {
		return s
	}
	return strings.ReplaceAll(s, c.s.key, registry.Redaction)
}
