package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"

	"github.com/minio/minio-go/v7"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// explain turns an error of the client into one that says what happened, to what, and what to do. key is the object it
// was about; "" for the bucket or a listing. The end of ctx stays recognisable, and so does a failure that may pass
// (fetch.RetryError around the explanation) where retry is set.
func (c *connection) explain(ctx context.Context, err error, key string, retry bool) error {
	var own *registry.Error
	var again *fetch.RetryError
	switch {
	case err != nil && ctx.Err() != nil: // and not errors.Is: a dial that takes too long calls itself DeadlineExceeded, too
		return ctx.Err()
	case errors.As(err, &own) && own.Op == "fetch" && c.stranger: // the guard of the transport
		return &registry.Error{Code: registry.CodeInvalid, Op: "s3", Msg: "the object store was not asked", Fields: []registry.FieldError{{Field: "custom_loader_params." + paramEndpoint,
			Msg: fmt.Sprintf("is %s, an address of this machine or of a private network, to which a model may not send the server. If that is meant to be, an admin sets AWS_ENDPOINT_URL to it or starts the server with --s3-allow-private", c.host())}}}
	case err == nil, errors.As(err, &own), errors.As(err, &again):
		return err
	}
	what := "s3://" + c.bucket
	if key != "" {
		what += "/" + printable(key)
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		passes, out := c.network(err)
		if retry && passes {
			return fetch.Transient(c.at.Host, err) // a network that is gone is waited for
		}
		return out
	}
	if transient(answer) {
		out := c.fail(registry.CodeUnavailable, "%s answers %s for %s; it is overloaded or being repaired: wait a little and try again", c.host(), c.said(answer), what)
		out.RetryAfter = c.count.hint(c.now())
		if retry {
			return &fetch.RetryError{Err: out, After: c.count.hint(c.now()), Slower: slower(answer)}
		}
		return out
	}
	return c.refusal(answer, what, key)
}

// refusal explains an answer that will stay the same until somebody changes something.
func (c *connection) refusal(a minio.ErrorResponse, what, key string) error {
	region := c.region
	if region == "" {
		region = "found out by asking"
	}
	switch a.Code {
	case "NoSuchBucket":
		return c.fail(registry.CodeNotFound, "there is no bucket %q at %s; correct source_path, or endpoint_url if it is another service", c.bucket, c.host())
	case "NoSuchKey", "NotFound", "NoSuchVersion", "MethodNotAllowed":
		if key != "" {
			return headers.Missing("Put it back and try again, or use what is there now", "%s is not there any more", what)
		}
		return c.fail(registry.CodeNotFound, "there is nothing at %s on %s; correct source_path", what, c.host())
	case "InvalidAccessKeyId":
		return c.field(paramAccessKey, "is not known to %s; give the key of an account of that service", c.host())
	case "SignatureDoesNotMatch":
		return c.field(paramSecretKey, "does not belong to the access key, says %s (the signature does not match); copy both again. A proxy that changes requests, or a wrong region (%s), shows the same", c.host(), region)
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return c.field(paramSessionToken, "has expired; get new temporary credentials, or give a key that stays")
	case "InvalidToken", "InvalidTokenId", "InvalidClientTokenId":
		return c.field(paramSessionToken, "is not accepted by %s; it must be from the same moment as the key, and none beside a key that stays", c.host())
	case "RequestTimeTooSkewed", "RequestInTheFuture", "RequestExpired":
		return c.fail(registry.CodeUnavailable, "%s refuses %s because the clocks differ too much: here it is %s; set this machine's clock (timedatectl) and try again", c.host(), what, c.now().UTC().Format(http.TimeFormat))
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "InvalidRegion", "IncorrectEndpoint", "BadRequest":
		if r := expectedRegion(a); r != "" {
			return c.field(paramRegion, "is %s, but the bucket %s is in %s; set region to %s", region, c.bucket, r, r)
		}
		if a.Code == "BadRequest" {
			break
		}
		return c.field(paramRegion, "is %s, which is not where the bucket %s is, says %s (%s); set region, and endpoint_url if the service has one for each region", region, c.bucket, c.host(), c.said(a))
	case "InvalidObjectState":
		return c.archived(what, "")
	case "PreconditionFailed":
		return c.changed(what)
	case "AccessDenied", "AllAccessDisabled", "AccountProblem", "AccessForbidden", "UnauthorizedAccess", "Forbidden", "InvalidPayer", "NotSignedUp":
		return c.denied(a, what)
	case "InvalidBucketName":
		return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model cannot be looked for in an object store",
			Fields: []registry.FieldError{{Field: "source_path", Msg: fmt.Sprintf("names the bucket %q, which %s does not accept", clip(c.bucket), c.host())}}}
	}
	switch a.StatusCode {
	case http.StatusForbidden, http.StatusUnauthorized:
		return c.denied(a, what)
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return c.fail(registry.CodeInvalid, "%s redirects %s to somewhere else, which is not followed with credentials; set endpoint_url (and region) to where the bucket is", c.host(), what)
	case http.StatusPreconditionFailed:
		return c.changed(what)
	}
	return c.fail(registry.CodeUnavailable, "%s answered %s for %s; is endpoint_url the address of an S3 service, and not of its console or of a proxy?", c.host(), c.said(a), what)
}

func (c *connection) denied(a minio.ErrorResponse, what string) error {
	hint := "Let the policy of the bucket or the account allow s3:ListBucket and s3:GetObject to this key, or give another key"
	switch {
	case c.anonymous():
		hint = "No credentials were given: set access_key_id and secret_access_key, or a profile"
		if c.stranger {
			hint = "Set access_key_id and secret_access_key: the server's own credentials are not given to an endpoint that a model names"
		}
	case !c.requesterPays:
		hint += "; if the bucket makes the requester pay, set requester_pays to true"
	}
	msg := fmt.Sprintf("%s denies access to %s (%s)", c.host(), what, c.said(a))
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "s3", Msg: msg + ". " + hint + ".",
		Failure: &registry.Failure{Kind: registry.FailureGated, Msg: msg, Hint: hint}}
}

func (c *connection) archived(what, class string) error {
	if class == "" {
		class = "an archive"
	}
	return headers.Missing("Restore the object in the service's console or with its restore-object command, which takes hours, and try again; or copy the model to a class that can be read at once",
		"%s lies in %s and cannot be read", what, class)
}

func (c *connection) changed(what string) error {
	return c.fail(registry.CodeUnavailable, "%s was replaced while it was read; nothing of two versions is mixed: start again to use what is there now", what)
}

// network explains an error below the protocol, and tells whether it may pass by itself.
func (c *connection) network(err error) (passes bool, explained error) {
	cause := err
	var u *url.Error
	if errors.As(err, &u) {
		cause = u.Err // its own text repeats the whole address
	}
	var (
		dns       *net.DNSError
		unknown   x509.UnknownAuthorityError
		host      x509.HostnameError
		badCert   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		alert     tls.AlertError
		timeout   net.Error
		plainHTTP = strings.Contains(cause.Error(), "server gave HTTP response to HTTPS client")
	)
	at := c.host()
	switch {
	case errors.As(err, &unknown):
		return false, c.fail(registry.CodeUnavailable, "the certificate of %s is signed by nobody this machine knows; add the authority to the system's certificates (or SSL_CERT_FILE) and restart", at)
	case errors.As(err, &host):
		return false, c.fail(registry.CodeUnavailable, "the certificate of %s is for another name: %s. Use the name in it as endpoint_url; for a bucket with dots in its name set path_style to true", at, c.scrub(host.Error()))
	case errors.As(err, &badCert):
		return false, c.fail(registry.CodeUnavailable, "the certificate of %s is not valid: %s. Check the clock of this machine and the certificate of the service", at, c.scrub(badCert.Error()))
	case errors.As(err, &record), errors.As(err, &alert), plainHTTP:
		return false, c.fail(registry.CodeInvalid, "%s does not speak TLS as asked (%s); begin endpoint_url with http:// if the service has none", at, c.scrub(cause.Error()))
	case errors.As(err, &dns) && dns.IsNotFound:
		return true, c.fail(registry.CodeUnavailable, "no host is called %s; correct endpoint_url, or the network's name server", clip(dns.Name))
	case errors.Is(err, syscall.ECONNREFUSED):
		return true, c.fail(registry.CodeUnavailable, "nothing listens at %s; start the service or correct endpoint_url", at)
	case errors.As(err, &timeout) && timeout.Timeout():
		return true, c.fail(registry.CodeUnavailable, "%s does not answer in time; check endpoint_url, the network and a firewall in between", at)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true, c.fail(registry.CodeUnavailable, "%s ended the connection early; try again", at)
	}
	return true, c.fail(registry.CodeUnavailable, "%s cannot be reached: %s. Check endpoint_url and the network", at, c.scrub(cause.Error()))
}

// transient reports whether the answer says that another try may succeed.
func transient(a minio.ErrorResponse) bool {
	switch a.Code {
	case "SlowDown", "SlowDownRead", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "TooManyRequests",
		"InternalError", "RequestTimeout", "ServiceUnavailable", "Busy", "XMinioServerNotInitialized", "OperationAborted":
		return true
	}
	switch a.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// slower reports whether the answer asks for fewer requests.
func slower(a minio.ErrorResponse) bool {
	return a.StatusCode == http.StatusTooManyRequests || a.StatusCode == http.StatusServiceUnavailable ||
		strings.HasPrefix(a.Code, "SlowDown") || strings.Contains(a.Code, "Thrott") || a.Code == "RequestLimitExceeded"
}

// expectedRegion finds the region that the service names: in a header, or in the words that Amazon and others use.
func expectedRegion(a minio.ErrorResponse) string {
	if regionName.MatchString(a.Region) {
		return a.Region
	}
	_, rest, ok := strings.Cut(a.Message, "expecting ")
	if !ok {
		return ""
	}
	rest = strings.TrimLeft(rest, "'‘\"` ")
	end := strings.IndexFunc(rest, func(r rune) bool { return r > 'z' || !regionName.MatchString(string(r)) && r != '-' && r != '_' })
	if end >= 0 {
		rest = rest[:end]
	}
	if !regionName.MatchString(rest) {
		return ""
	}
	return rest
}

// said is what the service said, without secrets: 403 AccessDenied: Access Denied.
func (c *connection) said(a minio.ErrorResponse) string {
	text := a.Code
	if a.StatusCode != 0 && !strings.HasPrefix(a.Code, fmt.Sprint(a.StatusCode)) {
		text = fmt.Sprintf("%d %s", a.StatusCode, a.Code)
	}
	if a.Message != "" && a.Message != a.Code {
		text += ": " + strings.TrimRight(a.Message, ". ")
	}
	return c.scrub(text)
}

// scrub makes a text of somebody else's fit for a message: short, printable, and without the credentials in use, which a
// service could repeat.
func (c *connection) scrub(text string) string {
	for _, s := range c.secrets() {
		if len(s) >= 4 {
			text = strings.ReplaceAll(text, s, registry.Redaction)
		}
	}
	const limit = 300
	text = strings.Join(strings.Fields(printable(text)), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "…"
	}
	return text
}

// printable replaces what would disturb a terminal or a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func (c *connection) fail(code registry.Code, format string, args ...any) *registry.Error {
	e := registry.Errorf(code, format, args...)
	e.Op = "s3"
	return e
}

// field blames a parameter. Where the model did not give it, the environment did, and the message says so.
func (c *connection) field(name, format string, args ...any) error {
	msg := fmt.Sprintf(format, args...)
	if name != paramRegion && !c.given {
		msg += ". It comes from the server's environment (AWS_… variables, ~/.aws, or the machine's role)"
	}
	return &registry.Error{Code: registry.CodeInvalid, Op: "s3", Msg: "the object store refuses the model's settings",
		Fields: []registry.FieldError{{Field: "custom_loader_params." + name, Msg: msg}}}
}
