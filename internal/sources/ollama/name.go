package ollama

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
)

// What stands for the parts of a name that are not given.
const (
	defaultHost      = "registry.ollama.ai"
	defaultNamespace = "library"
	defaultTag       = "latest"
)

// Name is the name of a model in an Ollama library, every part given.
type Name struct {
	Scheme    string // http or https, where the name says it; "" otherwise
	Host      string // with the port, if any
	Namespace string
	Model     string
	Tag       string
	Digest    string // of the manifest, as sha256:<hex>; "" for whatever the tag names
	Cloud     bool   // the name asks for a model that runs on the library's own machines
}

// ParseName reads [ollama://][scheme://][registry/][namespace/]model[:tag][@sha256:…] as Ollama does. The error says what is
// wrong with the name and how it should be; it begins with a verb, as a message about a field does.
func ParseName(s string) (Name, error) {
	var n Name
	rest, digest, pinned := strings.Cut(s, "@")
	if pinned {
		if digest = strings.ToLower(digest); !isDigest(digest) {
			return Name{}, fmt.Errorf("must have sha256: and 64 hexadecimal digits after the @")
		}
		n.Digest = digest
	}
	rest = strings.TrimPrefix(rest, "ollama://") // says where, and nothing else
	if scheme, after, ok := strings.Cut(rest, "://"); ok {
		if n.Scheme = strings.ToLower(scheme); n.Scheme != "http" && n.Scheme != "https" {
			return Name{}, fmt.Errorf("must begin with https:// or with the registry's name, not with %q", clip(scheme)+"://")
		}
		rest = after
	}
	// What runs in the cloud, and :local, which says that something does not.
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		tag := rest[i+1:]
		switch low := strings.ToLower(tag); {
		case low == "local":
			rest = rest[:i]
		case low == "cloud" || strings.HasSuffix(low, "-cloud"):
			n.Cloud = true
			fallthrough
		default:
			if tag == "" {
				return Name{}, fmt.Errorf("must have a tag after the colon, such as llama3.2:3b")
			}
			rest, n.Tag = rest[:i], tag
		}
	}
	parts := strings.Split(rest, "/")
	switch {
	case len(parts) > 3:
		return Name{}, fmt.Errorf("has %d parts; a name is registry/namespace/model:tag at most", len(parts))
	case len(parts) == 3:
		n.Host, n.Namespace, n.Model = parts[0], parts[1], parts[2]
	case n.Scheme != "":
		return Name{}, fmt.Errorf("must name registry, namespace and model, such as https://registry.example.com/team/model:tag")
	case len(parts) == 2:
		n.Host, n.Namespace, n.Model = defaultHost, parts[0], parts[1]
	default:
		n.Host, n.Namespace, n.Model = defaultHost, defaultNamespace, parts[0]
	}
	n.Tag = cmp.Or(n.Tag, defaultTag)
	for _, p := range []struct {
		what, text string
		longest    int
		also       string // characters beside letters, digits, - and _
	}{
		{"registry", n.Host, 350, ".:"}, {"namespace", n.Namespace, 80, ""}, {"model", n.Model, 80, "."}, {"tag", n.Tag, 80, "."},
	} {
		if msg := checkPart(p.text, p.longest, p.also); msg != "" {
			return Name{}, fmt.Errorf("has %s as its %s, which %s", quote(p.text), p.what, msg)
		}
	}
	return n, nil
}

// checkPart holds a part to what Ollama allows, which also makes it a safe name of a folder: it cannot begin with a
// dot, nor hold a slash.
func checkPart(s string, longest int, also string) string {
	switch {
	case s == "":
		return "is empty"
	case len(s) > longest:
		return fmt.Sprintf("is %d bytes long; at most %d are allowed", len(s), longest)
	case !isWord(s[0]):
		return "must begin with a letter, a digit or _"
	}
	for i := range len(s) {
		if !isWord(s[i]) && s[i] != '-' && strings.IndexByte(also, s[i]) < 0 {
			return "must be letters, digits and - _ " + strings.Join(strings.Split(also, ""), " ")
		}
	}
	return ""
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// isDigest reports whether s is sha256: and 64 hexadecimal digits in lower case.
func isDigest(s string) bool {
	sum, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(sum) != 64 || strings.ToLower(sum) != sum {
		return false
	}
	_, err := hex.DecodeString(sum)
	return err == nil
}

// String returns the shortest name that means the same, as Ollama lists it: with its tag, llama3.2:3b, or with its digest,
// beside which a tag says nothing.
func (n Name) String() string {
	s := n.repository()
	if strings.EqualFold(n.Host, defaultHost) {
		s = strings.TrimPrefix(s, defaultNamespace+"/")
	} else {
		s = n.Host + "/" + s
	}
	if n.Digest != "" {
		return s + "@" + n.Digest
	}
	return s + ":" + n.Tag
}

// repository is what the name is called within its registry.
func (n Name) repository() string { return n.Namespace + "/" + n.Model }

// reference is what a registry is asked for.
func (n Name) reference() string { return cmp.Or(n.Digest, n.Tag) }

// file is where Ollama keeps the manifest, below the folder of manifests. One that was asked for by its digest is kept
// under that, so that it does not move a tag.
func (n Name) file() string {
	tag := n.Tag
	if n.Digest != "" {
		tag = pinnedTag(n.Digest)
	}
	return filepath.Join(n.Host, n.Namespace, n.Model, tag)
}

// pinnedTag makes a tag of a manifest's digest: sha256-<hex>.
func pinnedTag(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// fromFile is the opposite of file: registry, namespace, model and tag with slashes between.
func fromFile(rel string) (Name, bool) {
	p := strings.Split(filepath.ToSlash(rel), "/")
	if len(p) != 4 {
		return Name{}, false
	}
	n, err := ParseName(p[0] + "/" + p[1] + "/" + p[2])
	if err != nil || checkPart(p[3], 80, ".") != "" {
		return Name{}, false
	}
	n.Tag = p[3]
	if digest := strings.Replace(p[3], "-", ":", 1); isDigest(digest) {
		n.Tag, n.Digest = defaultTag, digest
	}
	return n, true
}

func quote(s string) string { return fmt.Sprintf("%q", clip(strings.ToValidUTF8(s, "?"))) }

// clip keeps a text of others from flooding a message.
func clip(s string) string {
	const longest = 80
	if len(s) <= longest {
		return s
	}
	return strings.ToValidUTF8(s[:longest], "") + "…"
}
