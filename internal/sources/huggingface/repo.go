package huggingface

import (
	"fmt"
	"maps"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// asked is a reference, understood.
type asked struct {
	ref      sources.Ref
	id       string // org/name, or the name alone of the Hub's first models
	revision string
	token    string
	own      bool // the token is the model's own, not the machine's
	params   pick.Params
}

const maxName = 96 // bytes of the name of an organisation or a repository; the Hub's own limit

// idName is what validate_repo_id of the Python client lets through, for each side of the slash.
var idName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)

// commitHash is a full commit. Python takes only lower case for one.
var commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)

// Check returns every fault of a model's fields that can be seen without the network.
func (s *Source) Check(ref sources.Ref) []registry.FieldError {
	_, errs := s.understand(ref)
	return errs
}

// understand reads a reference.
func (s *Source) understand(ref sources.Ref) (asked, []registry.FieldError) {
	a := asked{ref: ref}
	var errs []registry.FieldError
	bad := func(field, format string, args ...any) {
		errs = append(errs, registry.FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
	}
	id, revision, file, err := s.address(ref.Path)
	if err != nil {
		bad("source_path", "%s", err.Error())
	}
	a.id = id
	switch given := ref.Revision; {
	case revision == "":
		a.revision = given
	case given == "" || given == registry.DefaultRevision || given == revision:
		a.revision = revision
	default:
		bad("revision", "is %q, but source_path already names %q; give one of the two", given, revision)
	}
	if a.revision == "" {
		a.revision = registry.DefaultRevision
	}
	if msg := checkRevision(a.revision); msg != "" {
		bad("revision", "%s", msg)
	}
	params, more := pick.Read(ref.Format, ref.Params)
	errs = append(errs, more...)
	a.params = params
	if file != "" && a.params.Filename == "" && a.params.Quantization == "" && (ref.Format == registry.FormatGGUF || ref.Format == registry.FormatONNX) {
		a.params.Filename = file
	}
	for _, name := range []string{"auth_token", "token"} {
		v, given := ref.Params[name]
		if !given || v == nil {
			continue
		}
		text, ok := v.(string)
		text = cleanToken(text)
		switch {
		case !ok:
			bad("custom_loader_params."+name, "must be a string")
		case text == "" || a.token != "":
		case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }):
			bad("custom_loader_params."+name, "holds a character that no token has; copy it again from the Hub's settings")
		default:
			a.token, a.own = text, true
		}
	}
	if a.token == "" {
		a.token = s.token()
	}
	return a, errs
}

// Normalize implements sources.Normalizer: hf://org/name@revision and what the browser's address bar shows become the id, the
// revision, and for a page of one GGUF or ONNX file its name.
func (s *Source) Normalize(ref sources.Ref) sources.Ref {
	id, revision, file, err := s.address(ref.Path)
	if err != nil || id == ref.Path {
		return ref
	}
	switch given := ref.Revision; {
	case revision == "" || given == revision:
	case given == "" || given == registry.DefaultRevision:
		ref.Revision = revision
	default:
		return ref // they contradict each other
	}
	ref.Path = id
	format := headers.FormatOf(file)
	if (format == registry.FormatGGUF || format == registry.FormatONNX) && (ref.Format == "" || ref.Format == format) && !chooses(ref.Params) {
		params := maps.Clone(ref.Params)
		if params == nil {
			params = map[string]any{}
		}
		params["filename"] = file
		ref.Format, ref.Params = format, params
	}
	return ref
}

// chooses reports whether the parameters say themselves which of several models is meant.
func chooses(params map[string]any) bool {
	for _, name := range []string{"filename", "quantization"} {
		if v := params[name]; v != nil && v != "" {
			return true
		}
	}
	return false
}

// address takes a source_path apart: org/name, hf://org/name@revision/file, or what the browser's address bar shows. file is
// the file that the address names, if it does.
func (s *Source) address(p string) (id, revision, file string, err error) {
	p = strings.TrimSpace(p)
	rest, isURI := strings.CutPrefix(p, "hf://")
	switch {
	case isURI:
		rest, revision, file = splitURI(strings.Trim(strings.TrimPrefix(rest, "models/"), "/"))
	case strings.HasPrefix(p, "https://"), strings.HasPrefix(p, "http://"):
		u, err := url.Parse(p)
		if err != nil || u.User != nil || !s.isHub(u) {
			return "", "", "", fmt.Errorf("is an address, but none of the Hub at %s; give the model's id such as org/name", s.endpoint.Host)
		}
		if rest, revision, file, err = splitPage(strings.Trim(strings.TrimPrefix(u.EscapedPath(), s.endpoint.EscapedPath()), "/")); err != nil {
			return "", "", "", fmt.Errorf("is an address that cannot be read; give the model's id such as org/name")
		}
	default:
		rest = p
	}
	if rest == "" {
		return "", "", "", fmt.Errorf("is empty; give the model's id such as org/name")
	}
	for _, kind := range []string{"datasets/", "spaces/", "buckets/", "kernels/"} {
		if strings.HasPrefix(rest, kind) {
			return "", "", "", fmt.Errorf("is one of the Hub's %s, not a model", strings.TrimSuffix(kind, "/"))
		}
	}
	parts := strings.Split(rest, "/")
	if len(parts) > 2 {
		return "", "", "", fmt.Errorf("is %q, which has more than one slash; a model's id is org/name", clip(rest))
	}
	for _, part := range parts {
		if len(part) > maxName || !idName.MatchString(part) || strings.Contains(part, "--") || strings.Contains(part, "..") {
			if strings.Contains(rest, ":") { // it may be a password
				rest = "…"
			}
			return "", "", "", fmt.Errorf("is %q; a model's id is org/name: letters, digits and . _ -, without -- and ..", clip(rest))
		}
	}
	if strings.HasSuffix(rest, ".git") {
		return "", "", "", fmt.Errorf("is %q; leave out the .git", clip(rest))
	}
	return rest, revision, file, nil
}

// splitURI takes apart org/name@revision/file as the Hub's file system for Python writes it. Of revisions with slashes only
// the Hub's own are known: refs/pr/1, refs/convert/parquet.
func splitURI(p string) (id, revision, file string) {
	id, rest, pinned := strings.Cut(p, "@")
	if !pinned {
		parts := strings.SplitN(p, "/", 3)
		if len(parts) == 3 {
			return parts[0] + "/" + parts[1], "", parts[2]
		}
		return p, "", ""
	}
	parts := strings.Split(rest, "/")
	n := 1
	if parts[0] == "refs" {
		n = 3
	}
	n = min(n, len(parts))
	return id, strings.Join(parts[:n], "/"), strings.Join(parts[n:], "/")
}

// isHub tells whether an address is one of the Hub that is used, or of the public one.
func (s *Source) isHub(u *url.URL) bool {
	switch strings.ToLower(u.Hostname()) {
	case strings.ToLower(s.endpoint.Hostname()), "huggingface.co", "www.huggingface.co", "hf.co":
		return true
	}
	return false
}

// splitPage takes apart org/name/tree/main/folder and org/name/blob/main/file. A slash in a revision is written as %2F.
func splitPage(escaped string) (id, revision, file string, err error) {
	parts := strings.Split(escaped, "/")
	for i := range parts {
		if parts[i], err = url.PathUnescape(parts[i]); err != nil {
			return "", "", "", err
		}
	}
	for i, part := range parts {
		if i == 0 || i > 2 || i+1 >= len(parts) {
			continue
		}
		switch part {
		case "blob", "resolve", "raw":
			return strings.Join(parts[:i], "/"), parts[i+1], strings.Join(parts[i+2:], "/"), nil
		case "tree":
			return strings.Join(parts[:i], "/"), parts[i+1], "", nil
		}
	}
	return strings.Join(parts, "/"), "", "", nil
}

// checkRevision says what is wrong with a name of a branch, tag or commit; "" when it can be one. It becomes the name of
// a file below refs/, so that it must not lead out of there.
func checkRevision(r string) string {
	switch {
	case len(r) > 255 || !utf8.ValidString(r):
		return "is longer than 255 bytes or not UTF-8"
	case !safeName(r) || strings.HasPrefix(r, "-") || strings.HasSuffix(r, ".lock") || strings.ContainsAny(r, "~^:?*[ ") || strings.Contains(r, "@{"):
		return fmt.Sprintf("is %q, which is no name of a branch, tag or commit", clip(r))
	}
	return ""
}

// driveName is a name that Windows takes for another disk.
var driveName = regexp.MustCompile(`^[A-Za-z]:`)

// safeName reports whether a name that came from the Hub stays below the folder that it is joined to, on any system.
func safeName(name string) bool {
	if name == "" || len(name) > 4096 || strings.ContainsAny(name, "\\\x00\r\n") || path.IsAbs(name) || path.Clean(name) != name {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || part == "." || driveName.MatchString(part) || len(part) > 255 {
			return false
		}
	}
	return true
}

// refused is the error of a reference that cannot be understood.
func refused(errs []registry.FieldError) error {
	return &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model cannot be looked up on the Hub", Fields: errs}
}

// folder is the name of the repository's folder in the cache.
func (a asked) folder() string { return "models--" + strings.ReplaceAll(a.id, "/", "--") }

// clip shortens what somebody else wrote so that it can be quoted in a message.
func clip(s string) string {
	const limit = 80
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > limit {
		return string(r[:limit]) + "…"
	}
	return s
}
