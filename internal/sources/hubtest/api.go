package hubtest

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
)

// hubHandler is the Hub itself. Paths are taken apart by hand: an encoded slash belongs to a revision, and nothing is
// cleaned, so that a name such as ../x comes through as it was sent.
func (h *Hub) hubHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, controlPath) {
			h.control(w, r)
			return
		}
		q := h.served.begin(r, false, h.o.Now())
		defer h.served.end(q)
		p := &reply{ResponseWriter: w, hub: h, r: r, q: q}
		var segments []string
		for s := range strings.SplitSeq(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/") {
			plain, err := url.PathUnescape(s)
			if err != nil {
				say(p, http.StatusBadRequest, "text/plain", "Bad Request")
				return
			}
			segments = append(segments, plain)
		}
		h.route(p, segments)
	})
}

func (h *Hub) route(p *reply, segments []string) {
	api := segments[0] == "api"
	if id, rest, ok := cut(segments, 0); ok && !api && len(rest) > 2 && rest[0] == "resolve" {
		// Known before anything goes wrong, so that a fault can be told which file it is for.
		h.served.note(func() { p.q.File = id + "/" + strings.Join(rest[2:], "/") })
	}
	if p.spoil() {
		return
	}
	user, fail := h.visitor(p.r)
	if fail != nil {
		fail.write(p, api)
		return
	}
	name := user
	if name == "" {
		name, _, _ = strings.Cut(p.r.RemoteAddr, ":")
	}
	kind, quota := "api", h.o.APIQuota
	if !api || len(segments) > 1 && segments[1] == "resolve-cache" {
		kind, quota = "resolvers", h.o.ResolveQuota
	}
	if !h.limits.take(p, kind, name, quota) {
		tooMany.write(p, api)
		return
	}
	switch {
	case len(segments) == 2 && api && segments[1] == "whoami-v2":
		h.whoami(p, user)
	case len(segments) > 2 && api && segments[1] == "models":
		h.models(p, segments)
	case len(segments) > 5 && api && segments[1] == "resolve-cache" && segments[2] == "models":
		if id, rest, ok := cut(segments, 3); ok && len(rest) > 1 {
			h.cached(p, id, rest[0], strings.Join(rest[1:], "/"))
			return
		}
		noSuchAddress.write(p, true)
	case api:
		noSuchAddress.write(p, true)
	default:
		if id, rest, ok := cut(segments, 0); ok && len(rest) > 2 && rest[0] == "resolve" {
			h.resolve(p, id, rest[1], strings.Join(rest[2:], "/"))
			return
		}
		noSuchAddress.write(p, false)
	}
}

// actions are what may follow an id; an id without an organisation is told by them.
var actions = []string{"revision", "tree", "refs", "paths-info", "auth-check", "resolve", "xet-read-token"}

// cut takes the id at segments[at:] off.
func cut(segments []string, at int) (id string, rest []string, ok bool) {
	s := segments[at:]
	switch {
	case len(s) == 0:
		return "", nil, false
	case len(s) == 1 || slices.Contains(actions, s[1]):
		return s[0], s[1:], true
	}
	return s[0] + "/" + s[1], s[2:], true
}

// known returns the repository that a request is about, after it was looked at whether the visitor may know of it. Nil
// and nil means that the answer is given: a redirect to the repository's new name.
func (h *Hub) known(p *reply, id string) (*repository, *refusal) {
	user, fail := h.visitor(p.r)
	if fail != nil {
		return nil, fail
	}
	missing := noRepository
	if user == "" {
		missing = notSignedIn
	}
	r, ok := h.repository(id, false)
	if !ok {
		return nil, missing
	}
	if err := h.refresh(r); err != nil {
		h.log.Error("a repository cannot be read", "repository", id, "error", err)
		return nil, &refusal{http.StatusInternalServerError, "", "Internal Error: " + err.Error()}
	}
	s := h.settingsOf(r)
	if s.RenamedTo != "" {
		to := strings.Replace(p.r.URL.RequestURI(), "/"+id, "/"+s.RenamedTo, 1)
		p.Header().Set("Location", to)
		say(p, http.StatusTemporaryRedirect, "text/plain; charset=utf-8", "Temporary Redirect. Redirecting to "+to)
		return nil, nil
	}
	if !r.exists() {
		return nil, missing
	}
	return r, mayKnow(s, user)
}

// files is known for a request that wants a file's content. A commit that was seen before is not looked up on disk.
func (h *Hub) files(p *reply, id, revision string) (*repository, *commit, *refusal) {
	user, fail := h.visitor(p.r)
	if fail != nil {
		return nil, nil, fail
	}
	if r, ok := h.repository(id, false); ok {
		r.mu.Lock()
		c := r.commits[revision]
		r.mu.Unlock()
		s := h.settingsOf(r)
		if c != nil && s.RenamedTo == "" {
			return r, c, mayRead(id, s, user)
		}
	}
	r, fail := h.known(p, id)
	if fail != nil || r == nil {
		return nil, nil, fail
	}
	if fail := mayRead(id, h.settingsOf(r), user); fail != nil {
		return nil, nil, fail
	}
	c, fail := h.revision(r, revision)
	return r, c, fail
}

func (h *Hub) revision(r *repository, revision string) (*commit, *refusal) {
	c, ok, err := h.at(r, revision)
	if err != nil {
		return nil, &refusal{http.StatusInternalServerError, "", "Internal Error: " + err.Error()}
	}
	if !ok {
		return nil, noRevision(revision)
	}
	return c, nil
}

// models answers what is below /api/models/.
func (h *Hub) models(p *reply, segments []string) {
	id, rest, _ := cut(segments, 2)
	r, fail := h.known(p, id)
	if fail != nil {
		fail.write(p, true)
		return
	}
	if r == nil {
		return // redirected
	}
	revision := "main"
	if len(rest) > 1 {
		revision = rest[1]
	}
	if len(rest) > 0 && rest[0] == "refs" {
		h.refs(p, r)
		return
	}
	if len(rest) > 0 && rest[0] == "auth-check" {
		user, _ := h.visitor(p.r)
		if fail := mayRead(id, h.settingsOf(r), user); fail != nil {
			fail.write(p, true)
			return
		}
		say(p, http.StatusOK, "text/plain; charset=utf-8", "OK")
		return
	}
	if len(rest) == 2 && rest[0] == "xet-read-token" && h.o.Xet {
		user, _ := h.visitor(p.r)
		if fail := mayRead(id, h.settingsOf(r), user); fail != nil {
			fail.write(p, true)
			return
		}
		h.xetToken(p, id)
		return
	}
	c, fail := h.revision(r, revision)
	if fail != nil {
		fail.write(p, true)
		return
	}
	switch {
	case len(rest) == 0, len(rest) == 2 && rest[0] == "revision":
		h.info(p, r, c)
	case len(rest) >= 2 && rest[0] == "tree":
		h.tree(p, r, c, revision, strings.Join(rest[2:], "/"))
	case len(rest) == 2 && rest[0] == "paths-info" && p.r.Method == http.MethodPost:
		h.pathsInfo(p, c)
	case len(rest) > 2 && rest[0] == "resolve":
		h.resolve(p, id, revision, strings.Join(rest[2:], "/"))
	default:
		noSuchAddress.write(p, true)
	}
}

func (h *Hub) json(p *reply, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		h.log.Error("an answer cannot be written", "error", err)
		say(p, http.StatusInternalServerError, "application/json; charset=utf-8", `{"error":"Internal Error"}`)
		return
	}
	say(p, http.StatusOK, "application/json; charset=utf-8", string(b))
}

func (h *Hub) whoami(p *reply, user string) {
	if user == "" {
		(&refusal{http.StatusUnauthorized, "", "Invalid username or password."}).write(p, true)
		return
	}
	h.json(p, map[string]any{
		"type": "user", "id": objectID("user", []byte(user))[:24], "name": user, "fullname": user, "isPro": false, "orgs": []any{},
		"auth": map[string]any{"type": "access_token", "accessToken": map[string]any{"displayName": "hubtest", "role": "read", "createdAt": stamp(h.o.Now())}},
	})
}

func (h *Hub) refs(p *reply, r *repository) {
	type ref struct {
		Name   string `json:"name"`
		Ref    string `json:"ref"`
		Target string `json:"targetCommit"`
	}
	list := func(prefix string, names map[string]string) []ref {
		out := []ref{}
		for name, target := range names {
			out = append(out, ref{name, prefix + name, target})
		}
		slices.SortFunc(out, func(a, b ref) int { return strings.Compare(a.Name, b.Name) })
		return out
	}
	r.mu.Lock()
	branches, tags := map[string]string{}, map[string]string{}
	for name, c := range r.branches {
		branches[name] = c.sha
	}
	for _, names := range []map[string]string{r.settings.Tags, r.tags} {
		for name := range names {
			if c, ok := r.lookUp(name, 0); ok {
				tags[name] = c.sha
			}
		}
	}
	r.mu.Unlock()
	out := map[string]any{"branches": list("refs/heads/", branches), "converts": []ref{}, "tags": list("refs/tags/", tags)}
	if p.r.URL.Query().Get("include_prs") != "" {
		out["pullRequests"] = []ref{}
	}
	h.json(p, out)
}

// entry is one file or folder of a tree, as the API tells it.
func (h *Hub) entry(p *reply, f *file, expand bool, c *commit) map[string]any {
	e := map[string]any{"type": "file", "oid": f.oid, "size": f.size, "path": f.path}
	if f.lfs() {
		e["lfs"] = map[string]any{"oid": h.toldIn(p, f), "size": f.size, "pointerSize": f.ptr}
	}
	if f.lfs() && h.o.Xet {
		e["xetHash"] = xetHash(f.sha)
	}
	if expand {
		e["lastCommit"] = map[string]any{"id": c.sha, "title": c.title, "date": stamp(c.at)}
		e["securityFileStatus"] = map[string]any{
			"status": "safe", "avScan": map[string]any{"virusFound": false, "virusNames": nil}, "pickleImportScan": nil,
		}
	}
	return e
}

// toldIn is told for a file within a list.
func (h *Hub) toldIn(p *reply, f *file) string {
	if h.faults.pick(etags, OnHub, p.r.URL.Path, p.q.File, f.path) != nil {
		return lie(f.sha)
	}
	return f.sha
}

func (h *Hub) folderEntry(name string, expand bool, c *commit) map[string]any {
	e := map[string]any{"type": "directory", "oid": c.trees[name], "size": 0, "path": name}
	if expand {
		e["lastCommit"] = map[string]any{"id": c.sha, "title": c.title, "date": stamp(c.at)}
	}
	return e
}

func yes(q url.Values, name string) bool {
	switch strings.ToLower(q.Get(name)) {
	case "1", "true", "yes", "on":
		return true
	}
	return false
}

// tree answers with one page of a folder: what is in it, or with recursive everything below.
func (h *Hub) tree(p *reply, r *repository, c *commit, revision, dir string) {
	q := p.r.URL.Query()
	recursive, expand := yes(q, "recursive"), yes(q, "expand")
	if _, ok := c.trees[dir]; !ok {
		p.Header().Set("X-Repo-Commit", c.sha)
		(&refusal{http.StatusNotFound, "EntryNotFound", dir + " does not exist on \"" + revision + "\""}).write(p, true)
		return
	}
	// Folders first among what is at one place, as the Hub lists them.
	var names []string
	for name := range c.trees {
		if name != "" && inside(name, dir, recursive) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	folders := len(names)
	for _, f := range c.files {
		if inside(f.path, dir, recursive) {
			names = append(names, f.path)
		}
	}
	size := h.o.PageSize
	switch {
	case size > 0:
	case expand:
		size = 50
	default:
		size = 1000
	}
	if n, err := strconv.Atoi(q.Get("limit")); err == nil && n > 0 {
		size = min(size, n)
	}
	from := 0
	if cursor := q.Get("cursor"); cursor != "" {
		n, err := strconv.Atoi(cursor)
		if err != nil || n < 0 || n > len(names) {
			(&refusal{http.StatusBadRequest, "", "Invalid cursor"}).write(p, true)
			return
		}
		from = n
	}
	page := []any{}
	to := min(len(names), from+size)
	for i := from; i < to; i++ {
		if i < folders {
			page = append(page, h.folderEntry(names[i], expand, c))
		} else {
			page = append(page, h.entry(p, c.named[names[i]], expand, c))
		}
	}
	if to < len(names) {
		q.Set("limit", strconv.Itoa(size))
		q.Set("cursor", strconv.Itoa(to))
		next := h.URL + "/api/models/" + r.id + "/tree/" + url.PathEscape(revision)
		if dir != "" {
			next += "/" + escape(dir)
		}
		p.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, next, q.Encode()))
	}
	h.json(p, page)
}

func inside(name, dir string, recursive bool) bool {
	if recursive {
		return dir == "" || strings.HasPrefix(name, dir+"/")
	}
	return folder(name) == dir
}

// pathsInfo answers with what is known of the paths that were asked for; others are left out.
func (h *Hub) pathsInfo(p *reply, c *commit) {
	var ask struct {
		Paths  []string `json:"paths"`
		Expand bool     `json:"expand"`
	}
	p.r.Body = http.MaxBytesReader(p, p.r.Body, 10<<20)
	kind, _, err := mime.ParseMediaType(p.r.Header.Get("Content-Type"))
	if err == nil && kind == "application/json" {
		err = json.NewDecoder(p.r.Body).Decode(&ask)
	} else if err = p.r.ParseForm(); err == nil {
		ask.Paths, ask.Expand = p.r.PostForm["paths"], yes(p.r.PostForm, "expand")
	}
	if err != nil {
		(&refusal{http.StatusBadRequest, "", "Bad Request"}).write(p, true)
		return
	}
	out := []any{}
	for _, name := range ask.Paths {
		name = path.Clean(name)
		if f, ok := c.named[name]; ok {
			out = append(out, h.entry(p, f, ask.Expand, c))
		} else if _, ok := c.trees[name]; ok {
			out = append(out, h.folderEntry(name, ask.Expand, c))
		}
	}
	h.json(p, out)
}
