package ollama

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// session is one look at one model in its registry, with the login that it took. It is safe for concurrent use.
type session struct {
	source *Source
	name   Name
	base   *url.URL // scheme and host
	creds  credentials
	client *http.Client

	requests, bytes atomic.Int64 // what it took of the network, weights not counted

	mu   sync.Mutex
	auth string // the Authorization header; "" for none
}

// maxRedirects is how often a registry may point elsewhere.
const maxRedirects = 10

// maxAnswer bounds the text of an error that a registry sends, in bytes.
const maxAnswer = 8 << 10

// open prepares a look at a model. It does not touch the network.
func (s *Source) open(name Name, creds credentials) (*session, error) {
	se := &session{source: s, name: name, creds: creds, client: s.strict}
	switch {
	case s.mirror != nil && strings.EqualFold(name.Host, defaultHost):
		se.base, se.client = s.mirror, s.trusting
	case s.plain(name.Host):
		se.base, se.client = &url.URL{Scheme: cmp.Or(name.Scheme, "http"), Host: name.Host}, s.trusting
	case name.Scheme == "http":
		return nil, registry.Errorf(registry.CodeForbidden, "%s would be fetched from %s without encryption, which this server does not do; use https, or let an admin add %s to the insecure registries", name, name.Host, name.Host)
	default:
		se.base = &url.URL{Scheme: "https", Host: name.Host}
		if s.private[strings.ToLower(name.Host)] {
			se.client = s.trusting
		}
	}
	if creds.token != "" {
		se.auth = "Bearer " + creds.token
	}
	return se, nil
}

// plain reports whether a registry may be spoken to without encryption.
func (s *Source) plain(host string) bool { return s.insecure[strings.ToLower(host)] }

// checkRedirect lets a registry point elsewhere, but never from encryption to none, and never with our login.
func (s *Source) checkRedirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case len(via) > maxRedirects:
		return registry.Errorf(registry.CodeUnavailable, "the registry %s points from one address to the next without end; ask whoever keeps it", first.URL.Host)
	case req.URL.Scheme != "https" && req.URL.Scheme != "http":
		return registry.Errorf(registry.CodeUnavailable, "the registry %s points to an address that is none of the web; ask whoever keeps it", first.URL.Host)
	case first.URL.Scheme == "https" && req.URL.Scheme != "https" && !s.plain(req.URL.Host):
		return registry.Errorf(registry.CodeForbidden, "the registry %s points to %s without encryption; ask whoever keeps it", first.URL.Host, req.URL.Host)
	}
	if req.URL.Host != first.URL.Host || req.URL.Scheme != first.URL.Scheme {
		req.Header.Del("Authorization")
	}
	return nil
}

// address returns where the registry keeps something of the model.
func (s *session) address(kind, reference string) *url.URL {
	return s.base.JoinPath("v2", s.name.Namespace, s.name.Model, kind, reference)
}

func (s *session) authorization() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.auth
}

// relogin answers a challenge once for all who wait for it: used is what the refused request was sent with.
func (s *session) relogin(ctx context.Context, answer *http.Response, used string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.auth != used {
		return nil
	}
	got, err := s.login(ctx, answer)
	if err != nil {
		return err
	}
	if got == used {
		return s.refused(answer)
	}
	s.auth = got
	return nil
}

// get asks the registry, logging in when it wants that. The answer's status is anything but 401.
func (s *session) get(ctx context.Context, client *http.Client, u *url.URL, header http.Header) (*http.Response, error) {
	ours := 0 // refusals of what was the newest login, and not one that another request has renewed meanwhile
	for try := 0; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
		if err != nil {
			return nil, registry.Errorf(registry.CodeInvalid, "%s is no address that can be asked", s.base.Host)
		}
		if header != nil {
			req.Header = header.Clone()
		}
		used := s.authorization()
		if used != "" {
			req.Header.Set("Authorization", used)
		}
		resp, err := s.sendBy(client, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized {
			return resp, nil
		}
		_ = resp.Body.Close() // only its headers matter
		if s.authorization() == used {
			ours++
		}
		if ours == 3 || try == 20 {
			return nil, s.refused(resp)
		}
		if err := s.relogin(ctx, resp, used); err != nil {
			return nil, err
		}
	}
}

func (s *session) send(req *http.Request) (*http.Response, error) { return s.sendBy(s.client, req) }

// The answers and broken connections that may pass are asked again this often and this long: somebody waits.
const (
	tries    = 3
	patience = 10 * time.Second
)

// sendBy sends a request, again when a fault may pass. The answer's status is one that will not pass.
func (s *session) sendBy(client *http.Client, req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", s.source.agent)
	var resp *http.Response
	err := fetch.Retry(req.Context(), tries, patience, func(context.Context) error {
		s.requests.Add(1)
		var err error
		resp, err = client.Do(req) //nolint:bodyclose // the caller closes it; one that is asked again is closed below
		if err != nil {
			passing := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
			if err = s.unreachable(req, err); passing && req.Context().Err() == nil {
				return &fetch.RetryError{Err: err}
			}
			return err
		}
		var again *fetch.RetryError
		if errors.As(fetch.StatusError(resp), &again) {
			body, _ := s.read(resp, maxAnswer) // whatever it says only makes the message better
			_ = resp.Body.Close()              // only read from
			return &fetch.RetryError{Err: s.explain(resp, body, "this model"), After: again.After, Slower: again.Slower}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// read returns the body of an answer, at most limit bytes.
func (s *session) read(resp *http.Response, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	s.bytes.Add(int64(len(body)))
	if err != nil {
		return nil, s.unreachable(resp.Request, err)
	}
	if int64(len(body)) > limit {
		return nil, registry.Errorf(registry.CodeUnavailable, "the registry %s answers with more than %s where a few lines were expected; ask whoever keeps it", s.base.Host, registry.Bytes(limit))
	}
	return body, nil
}

// manifest asks for the manifest of the name.
func (s *session) manifest(ctx context.Context, reference string) (*manifest, error) {
	header := http.Header{"Accept": {dockerManifest, ociManifest}}
	resp, err := s.get(ctx, s.client, s.address("manifests", reference), header)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := s.read(resp, maxManifest)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusNotFound {
			return nil, s.notFound(ctx, body, reference)
		}
		return nil, s.explain(resp, body, "the manifest")
	}
	m, err := readManifest(body)
	if err != nil {
		return nil, headers.InFile(err, s.name.String())
	}
	told := resp.Header.Get("Docker-Content-Digest")
	if isDigest(reference) {
		told = reference
	}
	if isDigest(told) && told != m.digest {
		return nil, headers.InFile(headers.Corrupt("Try again; if it stays so, ask whoever keeps the registry",
			"the manifest has the digest %s, not %s: it was changed on the way or in the registry", m.digest, told), s.name.String())
	}
	return m, nil
}

// small returns a blob that is read whole into memory, its digest checked.
func (s *session) small(ctx context.Context, l layer, limit int64) ([]byte, error) {
	if l.Size > limit {
		return nil, headers.Corrupt("Ask whoever keeps the registry", "%s of %s claims %s, where a few lines were expected", l.path(), s.name, registry.Bytes(l.Size))
	}
	resp, err := s.get(ctx, s.client, s.address("blobs", l.Digest), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := s.read(resp, limit)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, s.explainBlob(resp, body, l)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != l.sum() {
		return nil, headers.Corrupt("Try again; if it stays so, ask whoever keeps the registry", "%s of %s is not what its digest says: it was changed on the way or in the registry", l.path(), s.name)
	}
	return body, nil
}

// locate returns where the bytes of a blob can be had, and with which headers. Registries point to a storage with an
// address that is good for a while; asking once instead of for each range spares both sides a request.
func (s *session) locate(ctx context.Context, l layer) (string, http.Header, error) {
	u := s.address("blobs", l.Digest)
	for range maxRedirects {
		header := http.Header{"Range": {"bytes=0-0"}, "Accept-Encoding": {"identity"}}
		resp, err := s.get(ctx, still(s.client), u, header)
		if err != nil {
			return "", nil, err
		}
		var body []byte
		if resp.StatusCode >= 400 && resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			body, err = s.read(resp, maxAnswer)
		}
		_ = resp.Body.Close() // only read from
		switch {
		case resp.StatusCode >= 300 && resp.StatusCode < 400:
			to, err := resp.Location()
			if err != nil {
				return "", nil, registry.Errorf(registry.CodeUnavailable, "the registry %s points to nowhere for %s; ask whoever keeps it", s.base.Host, l.path())
			}
			if err := s.source.checkRedirect(&http.Request{URL: to, Header: http.Header{}}, []*http.Request{resp.Request}); err != nil {
				return "", nil, err
			}
			if to.Host != s.base.Host || to.Scheme != s.base.Scheme {
				return to.String(), http.Header{"User-Agent": {s.source.agent}}, nil
			}
			u = to
			continue
		case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable:
			header := http.Header{"User-Agent": {s.source.agent}}
			if login := s.authorization(); login != "" {
				header.Set("Authorization", login)
			}
			return u.String(), header, nil
		case err != nil:
			return "", nil, err
		}
		return "", nil, s.explainBlob(resp, body, l)
	}
	return "", nil, registry.Errorf(registry.CodeUnavailable, "the registry %s points from one address to the next without end; ask whoever keeps it", s.base.Host)
}

// still returns a client that follows no redirects.
func still(c *http.Client) *http.Client {
	out := *c
	out.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &out
}

// unreachable turns an error of the network into one that helps. Addresses are left out of it: what a storage is asked
// with may be signed.
func (s *session) unreachable(req *http.Request, err error) error {
	if err == nil {
		return nil
	}
	if ctxErr := req.Context().Err(); ctxErr != nil {
		return ctxErr
	}
	host := req.URL.Host
	var at *url.Error
	if errors.As(err, &at) {
		if u, parseErr := url.Parse(at.URL); parseErr == nil {
			host = u.Host
		}
		err = at.Err
	}
	var own *registry.Error
	switch {
	case errors.As(err, &own) && own.Op == "fetch": // the transport's rule about private addresses
		return registry.Errorf(registry.CodeForbidden, "%s is an address of this machine or of a private network, where this server fetches nothing from; let an admin add it to the private registries, or to the insecure ones if it has no encryption", host)
	case own != nil:
		return own
	}
	why := "cannot be reached"
	next := "check the network and the proxy settings, and try again"
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var timeout net.Error
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		why, next = "is a name that nobody knows", "check the registry's name, or the network"
	case errors.As(err, &cert):
		why, next = "shows a certificate that is not trusted", "add its authority to those that this machine trusts"
	case errors.As(err, &record):
		why, next = "does not speak TLS", "let an admin add it to the insecure registries if it is meant to be reached without encryption"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		why, next = "does not speak TLS", "let an admin add it to the insecure registries if it is meant to be reached without encryption"
	case errors.Is(err, syscall.ECONNREFUSED):
		why, next = "refuses the connection", "check its address and whether it runs"
	case errors.As(err, &timeout) && timeout.Timeout():
		why = "does not answer in time"
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama", Msg: fmt.Sprintf("%s %s; %s", host, why, next), Err: err}
}

// problem is what registries write into the body of an error: the distribution specification's way, or the Hub's.
type problem struct {
	Errors []struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"errors"`
	Error string `json:"error"`
}

// told returns the registry's own code and words, fit for a message.
func (s *session) told(body []byte) (code, words string) {
	var p problem
	switch err := json.Unmarshal(body, &p); {
	case err == nil && len(p.Errors) > 0:
		code, words = p.Errors[0].Code, p.Errors[0].Message
	case err == nil:
		words = p.Error
	case len(body) > 0 && body[0] != '<':
		words = string(body)
	}
	words = strings.Join(strings.Fields(strings.Map(printable, strings.ToValidUTF8(strings.ReplaceAll(words, "\n", " "), ""))), " ")
	for _, secret := range []string{s.creds.password, s.creds.token} {
		if secret != "" {
			words = strings.ReplaceAll(words, secret, registry.Redaction)
		}
	}
	if len(words) > 300 {
		words = strings.ToValidUTF8(words[:300], "") + "…"
	}
	return code, strings.TrimRight(words, ". ")
}

// notFound says whether the model or only its tag is missing, and where the tags are listed.
func (s *session) notFound(ctx context.Context, body []byte, reference string) error {
	_, words := s.told(body)
	none := func(format string, args ...any) error {
		return &registry.Error{Code: registry.CodeNotFound, Op: "ollama", Msg: fmt.Sprintf(format, args...)}
	}
	switch host := strings.ToLower(s.name.Host); {
	case isDigest(reference):
		return none("there is no manifest %s of %s in %s any more; take the tag instead", reference, s.name.repository(), s.base.Host)
	case host == defaultHost:
		page := "https://ollama.com/" + s.name.repository() + "/tags"
		return none("Ollama's library does not have %s; its tags, if there is such a model, are listed at %s", s.name, page)
	case host == "hf.co" || host == "huggingface.co":
		return none("%s does not have %s%s; see https://huggingface.co/%s for what it holds", s.base.Host, s.name, aside(words), s.name.repository())
	}
	if tags := s.tags(ctx); len(tags) > 0 {
		return none("the registry %s has %s, but not its tag %s; it has %s", s.base.Host, s.name.repository(), s.name.Tag, headers.Some(tags))
	}
	return none("the registry %s has no model %s with a tag %s, nor does it list others of it%s; check the name, or push it there with ollama push", s.base.Host, s.name.repository(), s.name.Tag, aside(words))
}

// tags returns the tags of the model, nil where the registry does not list them.
func (s *session) tags(ctx context.Context) []string {
	resp, err := s.get(ctx, s.client, s.address("tags", "list"), nil)
	if err != nil {
		return nil // this is about a better message only
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := s.read(resp, maxText)
	if err != nil || resp.StatusCode != http.StatusOK {
		return nil
	}
	var list struct {
		Tags []string `json:"tags"`
	}
	if json.Unmarshal(body, &list) != nil {
		return nil
	}
	var out []string
	for _, t := range list.Tags {
		if checkPart(t, 128, ".") == "" {
			out = append(out, t)
		}
	}
	return out
}

func aside(words string) string {
	if words == "" {
		return ""
	}
	return " (it says: " + words + ")"
}

// explainBlob makes an error of an answer about a blob that the manifest names.
func (s *session) explainBlob(resp *http.Response, body []byte, l layer) error {
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone {
		return headers.Missing("Push the model again, or take another tag", "the registry %s has the manifest of %s but not its %s", s.base.Host, s.name, l.path())
	}
	return s.explain(resp, body, l.path())
}

// explain makes an error of an answer that is none of those that were hoped for.
func (s *session) explain(resp *http.Response, body []byte, what string) error {
	code, words := s.told(body)
	err := &registry.Error{Code: registry.CodeUnavailable, Op: "ollama"}
	switch status := resp.StatusCode; {
	case status == http.StatusUnauthorized, status == http.StatusForbidden, code == "DENIED":
		return s.refused(resp)
	case status == http.StatusPreconditionFailed:
		err.Code = registry.CodeUnsupported
		err.Msg = fmt.Sprintf("the library gives %s only to a newer version of Ollama than this server stands for; update LLMModelManager, or pull it with a current ollama into %s and load again: it is used from there", s.name, s.source.dir)
	case status == http.StatusTooManyRequests:
		err.Code, err.RetryAfter = registry.CodeBusy, fetch.Hint(resp.Header, s.source.now())
		err.Msg = fmt.Sprintf("the registry %s was asked too often; try again later, or log in with username and password in custom_loader_params", s.base.Host)
	case status == http.StatusBadRequest && words != "":
		// This is how the Hub says that a repository cannot be had by Ollama's protocol.
		err.Code = registry.CodeInvalid
		err.Msg = fmt.Sprintf("%s refuses %s: %s; correct source_path, or register it with source_type huggingface", s.base.Host, s.name, words)
	case status >= 500:
		err.RetryAfter = fetch.Hint(resp.Header, s.source.now())
		err.Msg = fmt.Sprintf("the registry %s fails at %s (status %d)%s; try again later", s.base.Host, what, status, aside(words))
	default:
		err.Msg = fmt.Sprintf("the registry %s answers with status %d when it is asked for %s of %s%s; check the registry's address", s.base.Host, status, what, s.name, aside(words))
	}
	return err
}

// clients returns one that refuses to go to private addresses but for the listed ones, and one that does not.
func (s *Source) clients() (strict, trusting *http.Client) {
	listed := func(hostport string) bool {
		hostport = strings.ToLower(hostport)
		for _, as := range []string{hostport, strings.TrimSuffix(hostport, ":443"), strings.TrimSuffix(hostport, ":80")} {
			if s.insecure[as] || s.private[as] {
				return true
			}
		}
		return false
	}
	return &http.Client{Transport: fetch.Transport(fetch.TransportOptions{AllowPrivate: listed}), CheckRedirect: s.checkRedirect},
		&http.Client{Transport: fetch.Transport(fetch.TransportOptions{}), CheckRedirect: s.checkRedirect}
}

// remote is where the bytes of a blob are.
func (s *session) remote(l layer) fetch.Remote {
	return &fetch.HTTP{
		Client: s.client,
		Locate: func(ctx context.Context, _ bool) (string, http.Header, error) { return s.locate(ctx, l) },
		Explain: func(resp *http.Response) error {
			body, _ := s.read(resp, maxAnswer) // whatever it says only makes the message better
			return s.explainBlob(resp, body, l)
		},
	}
}
