package registry

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Validate checks what can be checked of a model without looking at the machine.
func Validate(m Model) []FieldError {
	var errs []FieldError
	add := func(field, format string, args ...any) {
		errs = append(errs, FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
	}
	if err := ValidateModelID(m.ModelID); err != nil {
		add("model_id", "%s", err.Error())
	}
	if m.SourceType == "" {
		add("source_type", "is required; one of %s", strings.Join(names(SourceTypes), ", "))
	}
	if m.ModelFormat == "" {
		add("model_format", "is required; one of %s", strings.Join(names(Formats), ", "))
	}
	switch {
	case m.SourcePath == "":
		add("source_path", "is required")
	case m.SourceType == SourceLocal:
		if msg := checkLocalPath(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	case m.SourceType == SourceHuggingFace:
		if msg := checkRepoID(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	case m.SourceType == SourceS3:
		if msg := checkS3Address(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	case m.SourceType == SourceOllama:
		if hasDotDot(m.SourcePath) || strings.HasPrefix(m.SourcePath, "-") || strings.HasPrefix(m.SourcePath, "/") || strings.ContainsFunc(m.SourcePath, unicode.IsSpace) {
			add("source_path", "must be an Ollama model name such as llama3.2:3b")
		}
	case m.SourceType == SourceExternal:
		if msg := checkBaseURL(m.SourcePath); msg != "" {
			add("source_path", "%s", msg)
		}
	}
	if m.TokenizerPath != "" {
		if strings.HasPrefix(m.TokenizerPath, "/") {
			if msg := checkLocalPath(m.TokenizerPath); msg != "" {
				add("tokenizer_path", "%s", msg)
			}
		} else if hasDotDot(m.TokenizerPath) {
			add("tokenizer_path", "must not contain ..")
		}
	}
	if hasDotDot(m.Revision) || strings.HasPrefix(m.Revision, "-") {
		add("revision", "must be a branch, tag or commit")
	}
	if err := ValidateTeam(m.Team); err != nil {
		add("team", "%s", err.Error())
	}
	return errs
}

// ValidateModelID checks an id: 1 to 256 bytes of letters, digits and . _ - : @ + in segments separated by single
// slashes; no segment is . or .., and none starts with a dash. Letters are those of any script, so that a team can
// use its own; ids that differ only in case are told apart by the store, which refuses the second.
func ValidateModelID(id string) error {
	switch {
	case id == "":
		return errors.New("is required")
	case len(id) > MaxModelID:
		return fmt.Errorf("is %d bytes long; at most %d are allowed", len(id), MaxModelID)
	case !utf8.ValidString(id):
		return errors.New("is not UTF-8")
	}
	for _, r := range id {
		if !isIDRune(r) {
			return fmt.Errorf("must not contain %s; use letters, digits and . _ - : @ + /", describeRune(r))
		}
	}
	for seg := range strings.SplitSeq(id, "/") {
		switch {
		case seg == "":
			return errors.New("must not start or end with a slash, nor contain two in a row")
		case seg == "." || seg == "..":
			return fmt.Errorf("must not contain %q as a part", seg)
		case seg[0] == '-':
			return errors.New("must not have a part that starts with a dash")
		}
	}
	return nil
}

// isIDRune tells what an id is made of. Marks are needed to write the words of many scripts; letters and marks that
// are not drawn would make two ids look the same.
func isIDRune(r rune) bool {
	if unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
		return false
	}
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.In(r, unicode.Mn, unicode.Mc) || strings.ContainsRune("._-:@+/", r)
}

// ValidateTeam checks a team's name: 1 to 64 bytes of lower-case ASCII letters, digits, dashes and underscores.
func ValidateTeam(name string) error {
	if name == "" || len(name) > 64 {
		return errors.New("must be 1 to 64 bytes long")
	}
	for i, r := range name {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && (i == 0 || (r != '-' && r != '_')) {
			return errors.New("must be lower-case letters, digits, dashes and underscores, and start with a letter or digit")
		}
	}
	return nil
}

func checkLocalPath(p string) string {
	switch {
	case !filepath.IsAbs(p):
		return "must be an absolute path, such as /opt/models/my-model"
	case hasDotDot(p):
		return "must not contain .."
	}
	return ""
}

// checkBaseURL refuses a user name or password in the address: it is shown, logged and exported as it is.
func checkBaseURL(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		return "must be a base URL that starts with http:// or https:// and names a host"
	case u.User != nil:
		return "must not carry a user name or password; give api_key in custom_loader_params"
	case u.RawQuery != "" || u.Fragment != "":
		return "must be a base URL without ? and #"
	}
	return ""
}

func checkS3Address(s string) string {
	rest, ok := strings.CutPrefix(s, "s3://")
	bucket, _, _ := strings.Cut(rest, "/")
	switch {
	case !ok || bucket == "" || strings.ContainsAny(bucket, "@?#: "):
		return "must be an address such as s3://bucket/folder"
	case hasDotDot(rest):
		return "must not contain .."
	}
	return ""
}

// checkHubAddress lets an address of the Hub pass, which its source takes apart before the model is stored. What it carries
// beside the place may be a secret, and is not quoted.
func checkHubAddress(s string) string {
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || strings.ContainsFunc(s, unicode.IsSpace):
		return "must be a Hub model id such as org/name, or its address"
	case u.User != nil && (u.Scheme != "hf" || strings.Contains(u.User.String(), ":")):
		return "must not carry a user name or password; give the model's id, and the token as auth_token in custom_loader_params"
	}
	return ""
}

// isHubAddress tells an address of the Hub from an id.
func isHubAddress(s string) bool {
	return strings.HasPrefix(s, "hf://") || strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

func checkRepoID(id string) string {
	if isHubAddress(id) {
		return checkHubAddress(id)
	}
	parts := strings.Split(id, "/")
	if len(parts) > 2 {
		return "must be a Hub model id such as org/name"
	}
	for _, p := range parts {
		if p == "" || strings.HasPrefix(p, "-") || strings.HasPrefix(p, ".") || strings.Contains(p, "..") || strings.HasSuffix(p, ".git") || len(p) > 96 {
			return "must be a Hub model id such as org/name"
		}
		for _, r := range p {
			if r > unicode.MaxASCII || (!unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r)) {
				return "must be a Hub model id such as org/name: letters, digits and . _ -"
			}
		}
	}
	return ""
}

func hasDotDot(p string) bool { return slices.Contains(strings.Split(filepath.ToSlash(p), "/"), "..") }

// clip shortens what a person typed so that it can be quoted in a message.
func clip(s string) string {
	const limit = 60
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) && s != "" {
		s = s[:len(s)-1]
	}
	return s + "…"
}

func describeRune(r rune) string {
	switch {
	case r == ' ':
		return "spaces"
	case unicode.IsControl(r) || !unicode.IsPrint(r):
		return fmt.Sprintf("the character %U", r)
	}
	return strconv.Quote(string(r))
}
