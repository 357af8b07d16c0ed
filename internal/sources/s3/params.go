package s3

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/pick"
)

// The custom_loader_params that this source understands, beside those that package pick reads.
const (
	paramEndpoint      = "endpoint_url"
	paramRegion        = "region"
	paramPathStyle     = "path_style"
	paramAccessKey     = "access_key_id"
	paramSecretKey     = "secret_access_key"
	paramSessionToken  = "session_token"
	paramProfile       = "profile"
	paramRequesterPays = "requester_pays"
)

// settings are a reference, read.
type settings struct {
	bucket string
	key    string // the prefix or the object, without a slash at either end; "" is the whole bucket
	folder bool   // source_path ends in a slash: not an object

	endpoint      *url.URL // nil: the environment's, else AWS
	region        string
	pathStyle     *bool // nil: as the endpoint's kind suggests
	accessKey     string
	secretKey     string
	sessionToken  string
	profile       string
	requesterPays bool
	choice        pick.Params
	code          bool   // Python files, too
	revision      string // a fingerprint that was asked for; "" is the newest
}

// Check returns what is wrong with a reference: source_path, revision, and the parameters of this source. It is pure.
func (s *Source) Check(ref sources.Ref) []registry.FieldError {
	_, errs := readSettings(ref)
	return errs
}

// settingsOf reads a reference. CodeInvalid names every field at fault.
func settingsOf(ref sources.Ref) (settings, error) {
	set, errs := readSettings(ref)
	if len(errs) > 0 {
		return set, &registry.Error{Code: registry.CodeInvalid, Op: "resolve", Msg: "the model cannot be looked for in an object store", Fields: errs}
	}
	return set, nil
}

// reader collects every fault instead of stopping at the first.
type reader struct {
	params map[string]any
	errs   []registry.FieldError
}

func (r *reader) fault(field, format string, args ...any) {
	r.errs = append(r.errs, registry.FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
}

func (r *reader) text(name string) string {
	switch v := r.params[name].(type) {
	case nil:
		return ""
	case string:
		return strings.TrimSpace(v)
	default:
		r.fault("custom_loader_params."+name, "must be a text")
		return ""
	}
}

func (r *reader) truth(name string) *bool {
	switch v := r.params[name].(type) {
	case nil:
		return nil
	case bool:
		return &v
	default:
		r.fault("custom_loader_params."+name, "must be true or false")
		return nil
	}
}

var (
	// bucketName is what Amazon allows, with what older buckets and other services have beside: capitals, underscores.
	bucketName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]$`)
	regionName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	// fingerprint is a Revision of this source.
	fingerprint = regexp.MustCompile(`^s3-[0-9a-f]{24}$`)
)

func readSettings(ref sources.Ref) (settings, []registry.FieldError) {
	r := &reader{params: ref.Params}
	set := settings{}
	rest, ok := strings.CutPrefix(ref.Path, "s3://")
	bucket, key, _ := strings.Cut(rest, "/")
	switch {
	case !ok:
		r.fault("source_path", "must be an address such as s3://bucket/folder")
	case !bucketName.MatchString(bucket) || strings.Contains(bucket, ".."):
		r.fault("source_path", "names the bucket %q, which cannot be one: 3 to 255 letters, digits, dots and dashes", clip(bucket))
	}
	set.bucket, set.folder = bucket, strings.HasSuffix(key, "/") || key == ""
	set.key = strings.Trim(key, "/")
	if set.key != "" && !safe(set.key) {
		r.fault("source_path", "holds %q, which cannot be the name of a folder here: no empty, . or .. part, no control character", clip(set.key))
	}
	switch rev := ref.Revision; {
	case rev == "" || rev == registry.DefaultRevision:
	case fingerprint.MatchString(rev):
		set.revision = rev
	default:
		r.fault("revision", "is %q: a prefix of an object store has no branches; leave it %s for what is there now, or give a fingerprint (s3-…) that a model was resolved to", clip(rev), registry.DefaultRevision)
	}

	set.endpoint = r.endpoint()
	set.region = r.text(paramRegion)
	if set.region != "" && !regionName.MatchString(set.region) {
		r.fault("custom_loader_params."+paramRegion, "is %q, which cannot be a region; an example is eu-central-1", clip(set.region))
	}
	set.pathStyle = r.truth(paramPathStyle)
	r.credentials(&set)
	if pays := r.truth(paramRequesterPays); pays != nil {
		set.requesterPays = *pays
	}
	choice, errs := pick.Read(ref.Format, ref.Params)
	set.choice, set.code = choice, ref.RemoteCode
	r.errs = append(r.errs, errs...)
	slices.SortFunc(r.errs, func(a, b registry.FieldError) int { return strings.Compare(a.Field, b.Field) })
	return set, r.errs
}

// endpoint reads endpoint_url. A path cannot be part of it: the protocol signs the path as bucket and key.
func (r *reader) endpoint() *url.URL {
	text := r.text(paramEndpoint)
	if text == "" {
		return nil
	}
	u, why := parseEndpoint(text)
	if why != "" {
		r.fault("custom_loader_params."+paramEndpoint, "%s", why)
		return nil
	}
	return u
}

// parseEndpoint returns why an endpoint is none, and never the text itself, which may hold a password.
func parseEndpoint(text string) (*url.URL, string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, "must be a base URL that starts with http:// or https:// and names a host"
	case u.User != nil:
		return nil, "must not carry a user name or password; give access_key_id and secret_access_key"
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return nil, "must name only a host and a port: the bucket belongs into source_path"
	}
	return &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, ""
}

func (r *reader) credentials(set *settings) {
	set.accessKey, set.secretKey = r.text(paramAccessKey), r.text(paramSecretKey)
	set.sessionToken, set.profile = r.text(paramSessionToken), r.text(paramProfile)
	switch {
	case set.accessKey != "" && set.secretKey == "":
		r.fault("custom_loader_params."+paramSecretKey, "is missing; access_key_id needs it")
	case set.accessKey == "" && set.secretKey != "":
		r.fault("custom_loader_params."+paramAccessKey, "is missing; secret_access_key needs it")
	case set.accessKey == "" && set.sessionToken != "":
		r.fault("custom_loader_params."+paramSessionToken, "belongs to an access_key_id and secret_access_key, which are missing")
	}
	if set.profile != "" && set.accessKey != "" {
		r.fault("custom_loader_params."+paramProfile, "cannot be given beside access_key_id; remove one of them")
	}
	if strings.ContainsAny(set.profile, "[]\r\n") {
		r.fault("custom_loader_params."+paramProfile, "cannot be the name of a profile")
	}
}

// Limits on names, so that every name which is accepted can be a file: NAME_MAX and a good part of PATH_MAX.
const (
	maxPart = 200 // bytes; the engine adds endings to names
	maxName = 1024
)

// safe reports whether a key below a prefix can be the path of a file below a folder of ours: relative, no empty part,
// no . or .., no backslash, no control character, nothing too long.
func safe(name string) bool {
	if name == "" || len(name) > maxName || strings.ContainsRune(name, '\\') || path.Clean(name) != name || path.IsAbs(name) {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || len(part) > maxPart {
			return false
		}
	}
	for _, r := range name {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return false
		}
	}
	return true
}

// clip shortens a name of somebody else's for a message. It is quoted there.
func clip(s string) string {
	const limit = 80
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return s
}
