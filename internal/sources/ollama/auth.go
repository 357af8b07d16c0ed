package ollama

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// credentials are what a model's custom_loader_params say about who asks. The zero value asks as nobody.
type credentials struct {
	username, password string
	token              string
}

func (c credentials) given() bool { return c.password != "" || c.token != "" }

// basic returns a user and a password. Registries that take tokens as passwords do not look at the user's name.
func (c credentials) basic() (user, password string) {
	switch {
	case c.password != "":
		return c.username, c.password
	case c.username != "":
		return c.username, c.token
	}
	return "token", c.token
}

// The parameters of a model that are credentials, and a revision's one.
const (
	paramUsername = "username"
	paramPassword = "password"
	paramToken    = "auth_token"
)

// readCredentials reads the parameters and returns what is wrong with them.
func readCredentials(params map[string]any) (credentials, []registry.FieldError) {
	var errs []registry.FieldError
	text := func(name string) string {
		v, there := params[name]
		if !there || v == nil {
			return ""
		}
		s, ok := v.(string)
		msg := ""
		switch {
		case !ok:
			msg = "must be a string"
		case strings.ContainsAny(s, "\r\n\x00"):
			msg = "must be on one line"
		case name == paramUsername && strings.Contains(s, ":"):
			msg = "must not contain a colon"
		}
		if msg != "" {
			errs = append(errs, registry.FieldError{Field: "custom_loader_params." + name, Msg: msg})
			return ""
		}
		return strings.TrimSpace(s)
	}
	c := credentials{username: text(paramUsername), password: text(paramPassword), token: text(paramToken)}
	switch {
	case len(errs) > 0:
	case c.password != "" && c.token != "":
		errs = append(errs, registry.FieldError{Field: "custom_loader_params." + paramToken, Msg: "and password are both given; keep one of them"})
	case c.password != "" && c.username == "":
		errs = append(errs, registry.FieldError{Field: "custom_loader_params." + paramUsername, Msg: "is missing; a password needs a user's name"})
	case c.username != "" && !c.given():
		errs = append(errs, registry.FieldError{Field: "custom_loader_params." + paramPassword, Msg: "is missing; a user's name needs a password or auth_token"})
	}
	return c, errs
}

// challenge is one way to log in that a registry offers.
type challenge struct {
	scheme string // lower case: basic, bearer
	params map[string]string
}

// maxChallenge bounds how much of a header is looked at, in bytes.
const maxChallenge = 16 << 10

// readChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1). What cannot be read is left out.
func readChallenges(lines []string) []challenge {
	var out []challenge
	for _, s := range lines {
		s = s[:min(len(s), maxChallenge)]
		for s != "" {
			var word string
			s = strings.TrimLeft(s, " \t,")
			word, s = token(s)
			if word == "" {
				break // neither a scheme nor a parameter begins here
			}
			rest := strings.TrimLeft(s, " \t")
			if value, ok := strings.CutPrefix(rest, "="); ok && len(out) > 0 {
				value, s = parameter(strings.TrimLeft(value, " \t"))
				out[len(out)-1].params[strings.ToLower(word)] = value
				continue
			}
			out = append(out, challenge{strings.ToLower(word), map[string]string{}})
		}
	}
	return out
}

// token cuts off the characters that a token of HTTP is made of.
func token(s string) (string, string) {
	i := strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i:]
}

// parameter cuts off the value of a parameter: a token, or a string in quotes.
func parameter(s string) (string, string) {
	if !strings.HasPrefix(s, `"`) {
		return token(s)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), ""
}

// login answers a registry's challenge: it returns the Authorization header to ask again with. The answer of a registry
// that offers nothing we can do, or refuses what we have, is an error that says so.
func (s *session) login(ctx context.Context, answer *http.Response) (string, error) {
	offers := readChallenges(answer.Header.Values("WWW-Authenticate"))
	for _, c := range offers {
		if c.scheme == "bearer" && c.params["realm"] != "" {
			return s.fetchToken(ctx, c)
		}
	}
	for _, c := range offers {
		if c.scheme == "basic" && s.creds.given() {
			user, password := s.creds.basic()
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password)), nil
		}
	}
	return "", s.refused(answer)
}

// fetchToken asks the place that a bearer challenge names for a token (the token authentication of the registries'
// distribution specification). Credentials go there only; what comes back goes to the registry only.
func (s *session) fetchToken(ctx context.Context, c challenge) (string, error) {
	realm, err := s.base.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || realm.User != nil || realm.Scheme != "https" && realm.Scheme != "http" {
		return "", registry.Errorf(registry.CodeUnavailable, "the registry %s asks for a login at an address that makes no sense; ask whoever keeps it", s.base.Host)
	}
	if realm.Scheme == "http" && s.base.Scheme != "http" && !s.source.plain(realm.Host) {
		return "", registry.Errorf(registry.CodeForbidden, "the registry %s asks for a login at %s without encryption, which would give the password away; ask whoever keeps it", s.base.Host, realm.Host)
	}
	q := realm.Query()
	if service := c.params["service"]; service != "" {
		q.Set("service", service)
	}
	scope := c.params["scope"]
	if scope == "" {
		scope = "repository:" + s.name.repository() + ":pull"
	}
	for one := range strings.FieldsSeq(scope) {
		q.Add("scope", one)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return "", registry.Errorf(registry.CodeUnavailable, "the registry %s asks for a login at an address that makes no sense; ask whoever keeps it", s.base.Host)
	}
	switch {
	case s.creds.given():
		user, password := s.creds.basic()
		q.Set("account", user)
		req.SetBasicAuth(user, password)
	case s.source.key != "" && realm.Host == s.base.Host:
		// As Ollama does: the key proves who asks, to the registry itself and to nobody else.
		if err := s.sign(req, realm, q); err != nil {
			return "", err
		}
	}
	realm.RawQuery = q.Encode()
	req.URL = realm
	resp, err := s.send(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // only read from
	body, err := s.read(resp, maxText)
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusBadRequest {
			return "", s.refused(resp)
		}
		return "", s.explain(resp, body, "a login")
	}
	var got struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.Unmarshal(body, &got); err != nil || got.Token == "" && got.AccessToken == "" || strings.ContainsAny(got.Token+got.AccessToken, "\r\n") {
		return "", registry.Errorf(registry.CodeUnavailable, "the login at %s gave no token; ask whoever keeps the registry", realm.Host)
	}
	if got.Token == "" {
		got.Token = got.AccessToken
	}
	return "Bearer " + got.Token, nil
}

// sign puts the signature of Ollama's key on a request for a token: over the method, the whole address with the time and
// a number used once, which it adds to q, and the hash of the body, which is empty.
func (s *session) sign(req *http.Request, realm *url.URL, q url.Values) error {
	broken := func(what string) error {
		return registry.Errorf(registry.CodeUnavailable, "the key %s %s; make one with ollama, or start the server without it", s.source.key, what)
	}
	raw, err := os.ReadFile(s.source.key)
	if err != nil {
		return broken("cannot be read")
	}
	key, err := ssh.ParsePrivateKey(raw)
	if err != nil {
		return broken("is no private key without a passphrase")
	}
	q.Set("ts", strconv.FormatInt(s.source.now().Unix(), 10))
	q.Set("nonce", rand.Text())
	signed := *realm
	signed.RawQuery = q.Encode()
	empty := sha256.Sum256(nil)
	text := fmt.Sprintf("%s,%s,%s", http.MethodGet, signed.String(), base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(empty[:]))))
	signature, err := key.Sign(rand.Reader, []byte(text))
	if err != nil {
		return broken("cannot sign")
	}
	public := strings.Fields(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	req.Header.Set("Authorization", public[1]+":"+base64.StdEncoding.EncodeToString(signature.Blob))
	return nil
}

// refused says that a registry wants to know who asks, or does not like who does.
func (s *session) refused(resp *http.Response) error {
	var msg, hint string
	switch {
	case s.creds.given():
		msg = fmt.Sprintf("the registry %s refuses the credentials that were given for %s", s.base.Host, s.name)
		hint = "Check username and password, or auth_token, in custom_loader_params, and whether they may read this model"
	case strings.EqualFold(s.name.Host, "hf.co") || strings.EqualFold(s.name.Host, "huggingface.co"):
		msg = fmt.Sprintf("%s does not exist at %s, or it is private or gated there", s.name, s.base.Host)
		hint = "Check the name; for a private or gated repository register it with source_type huggingface and an auth_token"
	case strings.EqualFold(s.name.Host, defaultHost):
		msg = fmt.Sprintf("%s does not exist in Ollama's library, or it is private there", s.name)
		hint = "Check the name at https://ollama.com/search; for a private model give the server an Ollama key that may read it"
	default:
		msg = fmt.Sprintf("the registry %s wants a login for %s, or does not have it", s.base.Host, s.name)
		hint = "Set username and password, or auth_token, in custom_loader_params"
	}
	code := registry.CodeUnauthenticated
	if resp.StatusCode == http.StatusForbidden {
		code = registry.CodeForbidden
	}
	return gated(code, msg, hint)
}

// gated makes the error of a model that is there and not for everybody. Its code is that of a failed load, as the
// caller of our own API has done nothing wrong; wants is kept in Op for the log.
func gated(wants registry.Code, msg, hint string) error {
	return &registry.Error{
		Code: registry.CodeLoadingFailed, Op: "ollama: " + string(wants), Msg: msg + ". " + hint + ".",
		Failure: &registry.Failure{Kind: registry.FailureGated, Msg: msg, Hint: hint},
	}
}
