package hubtest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// refusal is an answer that is no success, with the headers by which clients tell them apart.
type refusal struct {
	status  int
	code    string // X-Error-Code
	message string // X-Error-Message, and the body's
}

// The Hub's refusals, by what its clients look for.
var (
	badToken      = &refusal{http.StatusUnauthorized, "", "Invalid credentials in Authorization header"}
	noRepository  = &refusal{http.StatusNotFound, "RepoNotFound", "Repository not found"}
	notSignedIn   = &refusal{http.StatusUnauthorized, "RepoNotFound", "Invalid username or password."}
	disabled      = &refusal{http.StatusForbidden, "", "Access to this resource is disabled."}
	noEntry       = &refusal{http.StatusNotFound, "EntryNotFound", "Entry not found"}
	noSuchAddress = &refusal{http.StatusNotFound, "", "Sorry, we can't find the page you are looking for."}
	expired       = "Request has expired"
)

func noRevision(rev string) *refusal {
	return &refusal{http.StatusNotFound, "RevisionNotFound", "Invalid rev id: " + rev}
}

// write answers with the refusal: JSON to the API, a line of text elsewhere.
func (f *refusal) write(w http.ResponseWriter, api bool) {
	if f.code != "" {
		w.Header().Set("X-Error-Code", f.code)
	}
	w.Header().Set("X-Error-Message", f.message)
	if api {
		say(w, f.status, "application/json; charset=utf-8", fmt.Sprintf(`{"error":%q}`, f.message))
		return
	}
	say(w, f.status, "text/plain; charset=utf-8", f.message)
}

// visitor returns the name of the user whose token came along, "" for an anonymous visitor.
func (h *Hub) visitor(r *http.Request) (string, *refusal) {
	auth := r.Header.Get("Authorization")
	if auth == "" || len(h.o.Tokens) == 0 {
		return "", nil
	}
	token, ok := strings.CutPrefix(auth, "Bearer ")
	user, known := h.o.Tokens[token]
	if !ok || !known {
		return "", badToken
	}
	return user, nil
}

// mayKnow tells whether a visitor may know that the repository is there.
func mayKnow(s Settings, user string) *refusal {
	switch {
	case s.Disabled:
		return disabled
	case !s.Private || user != "" && slices.Contains(s.Authorized, user):
		return nil
	case user == "":
		return notSignedIn
	}
	return noRepository
}

// mayRead tells whether a visitor may have the repository's files.
func mayRead(id string, s Settings, user string) *refusal {
	if f := mayKnow(s, user); f != nil {
		return f
	}
	if s.Gated == "" || user != "" && slices.Contains(s.Authorized, user) {
		return nil
	}
	if user == "" {
		return &refusal{http.StatusUnauthorized, "GatedRepo", "Access to model " + id +
			" is restricted. You must have access to it and be authenticated to access it. Please log in."}
	}
	return &refusal{http.StatusForbidden, "GatedRepo", "Access to model " + id +
		" is restricted and you are not in the authorized list. Visit https://huggingface.co/" + id + " to ask for access."}
}

// limits count the requests of each visitor in each window.
type limits struct {
	now    func() time.Time
	window time.Duration

	mu    sync.Mutex
	began time.Time
	used  map[string]int // by kind and visitor
}

// take counts one request and sets the headers that say how many are left. It returns false when none was.
func (l *limits) take(w http.ResponseWriter, kind, visitor string, quota int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if l.used == nil || now.Sub(l.began) >= l.window {
		l.began, l.used = now, map[string]int{}
	}
	told := quota
	if told <= 0 {
		told = map[string]int{"api": 500, "resolvers": 3000}[kind]
	}
	l.used[kind+" "+visitor]++
	used := l.used[kind+" "+visitor]
	left := int(l.began.Add(l.window).Sub(now).Seconds() + 0.999)
	if quota <= 0 {
		used = min(used, told-1) // unlimited: the headers never say that nothing is left
	}
	rateHeaders(w.Header(), kind, max(0, told-used), left, told, int(l.window.Seconds()))
	return quota <= 0 || used <= quota
}

func rateHeaders(header http.Header, kind string, remaining, reset, quota, window int) {
	header.Set("RateLimit", fmt.Sprintf(`%q;r=%d;t=%d`, kind, remaining, reset))
	header.Set("RateLimit-Policy", fmt.Sprintf(`"fixed window";%q;q=%d;w=%d`, kind, quota, window))
}

var tooMany = &refusal{http.StatusTooManyRequests, "", "We had to rate limit you. To continue using our service, create a HF account or login to your existing account, and make sure you pass a HF_TOKEN if you're using the API."}
