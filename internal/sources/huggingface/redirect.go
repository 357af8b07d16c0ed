package huggingface

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// maxRedirects is how many a request may be led through. A renamed repository takes one, its files another.
const maxRedirects = 6

// redirectError is a redirect that is not followed. Msg tells no address: a signed one is a secret.
type redirectError struct{ msg string }

func (e *redirectError) Error() string { return e.msg }

var errCycle = &redirectError{"it redirects in a circle"}

// checkRedirect is the rule of every redirect: the token stays with the host of the Hub, nothing goes from https to http,
// and a circle ends. Whether the address that a redirect leads to may be dialled at all is the transport's decision.
func (s *Source) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errCycle
	}
	for _, earlier := range via {
		if earlier.Method == req.Method && earlier.URL.String() == req.URL.String() {
			return errCycle
		}
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return &redirectError{"it redirects from https to " + clip(req.URL.Scheme) + ", where anybody on the way could change what comes"}
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" {
		return &redirectError{"it redirects to an address of another kind: " + clip(req.URL.Scheme)}
	}
	if !s.sameHost(req.URL) {
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
	}
	req.Header.Del("Referer") // the address before may have been signed
	return nil
}

// sameHost reports whether an address is of the Hub that the token was given for: same scheme, host and port.
func (s *Source) sameHost(u *url.URL) bool {
	return u.Scheme == s.endpoint.Scheme && strings.EqualFold(u.Hostname(), s.endpoint.Hostname()) && port(u) == port(s.endpoint)
}

func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	return map[string]string{"http": "80", "https": "443"}[u.Scheme]
}

// redirectFault finds the redirect that ended a request.
func redirectFault(err error) *redirectError {
	var r *redirectError
	if errors.As(err, &r) {
		return r
	}
	return nil
}
