package view

import (
	"fmt"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Files is what is known of a model's files, for the card on its page.
type Files struct {
	Known  *registry.ModelArtifact // nil when nobody has looked yet
	Fetch  *Operation              // under way or paused; nil when none is
	Last   *Operation              // the newest one, when it has ended
	OnDisk int64                   // bytes; of Known.Bytes
	Where  string                  // the folder they lie in; "" when they do not, or for whom it is not
}

// HasFiles reports whether the model has files that this server could fetch at all.
func (p ModelPage) HasFiles() bool { return p.Record.SourceType != registry.SourceExternal }

// Remote reports whether the files come from elsewhere, so that they can be fetched.
func (p ModelPage) Remote() bool {
	return p.HasFiles() && p.Record.SourceType != registry.SourceLocal
}

// Here reports whether the model's files are on this machine at the revision that was last seen.
func (p ModelPage) Here() bool {
	a := p.Files.Known
	if a == nil {
		return false
	}
	if p.Record.SourceType == registry.SourceLocal {
		return a.Problem == nil
	}
	return (a.Fetched != "" && a.Fetched == a.Revision) || (a.Bytes > 0 && p.Files.OnDisk >= a.Bytes)
}

// FilesStatus is whether the files are here, as a dot and a word.
func (p ModelPage) FilesStatus() Status {
	a, f := p.Files.Known, p.Files.Fetch
	switch {
	case f != nil && f.State == registry.OperationPaused:
		return Status{"wait", "Paused"}
	case f != nil && f.Stalled():
		return Status{"wait", "Not moving"}
	case f != nil:
		doing := "Fetching"
		if s := f.Running(); s != nil && s.Name == registry.StageVerify {
			doing = "Verifying"
		}
		if n := f.Percent(); n > 0 {
			return Status{"busy", fmt.Sprintf("%s %d%%", doing, n)}
		}
		return Status{"busy", doing}
	case a != nil && a.Changed != "":
		return Status{"wait", "Changed on disk"}
	case p.damaged():
		return Status{"failed", "Damaged"}
	case p.Here():
		return Status{"ready", "On this machine"}
	case a != nil && a.Problem != nil:
		return Status{"failed", "Cannot be had"}
	case a != nil && a.Fetched != "":
		return Status{"wait", "An older revision is here"}
	case a == nil:
		return Status{"", "Not looked at yet"}
	}
	return Status{"", "Not fetched"}
}

// FilesList is what is known of the files, as names and values.
func (p ModelPage) FilesList() []Fact {
	a := p.Files.Known
	if a == nil {
		return nil
	}
	var out []Fact
	if a.Bytes > 0 {
		note := ""
		if !p.Here() {
			note = onDisk(a.Source, p.Files.OnDisk, a.Bytes)
		}
		out = append(out, Fact{Name: "Size", Value: Bytes(a.Bytes), Note: "in " + Plural(len(a.Files), "file", "files") + nonEmpty(", ", note)})
	}
	if a.Revision != "" && a.Source != registry.SourceLocal {
		note := ""
		if a.Requested != "" && a.Requested != a.Revision {
			note = "asked for as " + a.Requested
		}
		out = append(out, Fact{Name: "Revision", Value: ShortRevision(a.Revision), Note: note, Mono: true})
	}
	if c := a.Tokenizer; c != nil {
		out = append(out, Fact{Name: "Tokenizer", Value: c.Path, Note: tokenizerNote(c)})
	}
	if a.Fetched != "" && a.Fetched != a.Revision {
		out = append(out, Fact{Name: "Here", Value: ShortRevision(a.Fetched), Note: "an older revision, fetched " + minutesAgo(a.FetchedAt, p.Now), Mono: true})
	} else if !a.FetchedAt.IsZero() && p.Remote() {
		out = append(out, Fact{Name: "Fetched", Value: minutesAgo(a.FetchedAt, p.Now), Note: checked(a.Files)})
	}
	if a.Loaded != "" && a.Loaded != a.Revision && p.Runtime.State.HoldsMemory() {
		out = append(out, Fact{Name: "Loaded", Value: ShortRevision(a.Loaded), Note: "reload it to use the newer files", Mono: true})
	}
	if !a.ResolvedAt.IsZero() {
		out = append(out, Fact{Name: "Looked at", Value: minutesAgo(a.ResolvedAt, p.Now)})
	}
	if p.Files.Where != "" {
		out = append(out, Fact{Name: "Where", Value: p.Files.Where, Mono: true})
	}
	return out
}

// checked says how far the content of files was verified when they came.
func checked(files []registry.File) string {
	switch n := registry.Unsummed(files); {
	case n == 0:
		return "and verified"
	case n == len(files):
		return "and only size and ETag checked: the source keeps no checksums of these files"
	default:
		return "and verified, but of " + Plural(n, "file", "files") + " only size and ETag: the source keeps no checksums of them"
	}
}

// tokenizerNote says what a tokenizer of another repository is.
func tokenizerNote(c *registry.Companion) string {
	note := ShortRevision(c.Revision) + ", " + Plural(len(c.Files), "file", "files") + " of " + Bytes(c.Bytes)
	if c.Folder == "" {
		note += ", fetched with it"
	}
	return note
}

// ChangedAdvice is what to do about files that changed on disk.
func (p ModelPage) ChangedAdvice() string {
	if p.Runtime.State.HoldsMemory() {
		return "What is loaded goes on with the files as they were. Reload it to use them as they are now."
	}
	return "The next load reads them as they are now. Put the old ones back if that is not meant."
}

// maxFilesShown is how many files of a model its page lists.
const maxFilesShown = 100

// FileNames are the files that the card lists, and how many more there are.
func (p ModelPage) FileNames() (shown []registry.File, more int) {
	if p.Files.Known == nil {
		return nil, 0
	}
	all := p.Files.Known.Files
	n := min(len(all), maxFilesShown)
	return all[:n], len(all) - n
}

// FetchLine is how a fetch goes, in one sentence.
func (p ModelPage) FetchLine() string {
	f := p.Files.Fetch
	switch {
	case f == nil:
		return ""
	case f.State == registry.OperationPaused:
		if f.Outcome != "" {
			return Sentence(f.Outcome)
		}
		return "Paused. What has arrived stays on the disk."
	}
	return f.StageLine()
}

// Fetching reports whether its files are being fetched without a load: the model can still be loaded meanwhile.
func (p ModelPage) Fetching() bool {
	return p.Operation == nil && p.Files.Fetch != nil && p.Status == registry.StatusFetching
}

// CanFetch reports whether a fetch is offered: there is something to bring here, and nobody does it yet.
func (p ModelPage) CanFetch() bool {
	return p.Can.Load && p.Remote() && p.Usable() && p.Files.Fetch == nil && p.Operation == nil && !p.Here()
}

// CanVerify reports whether it is offered to read the files again: all of them are here, and nobody fetches them.
func (p ModelPage) CanVerify() bool {
	return p.Can.Load && p.HasFiles() && p.Usable() && p.Files.Fetch == nil && p.Operation == nil && p.Here()
}

// damaged reports whether the newest fetch found files that are not what they should be.
func (p ModelPage) damaged() bool {
	l := p.Files.Last
	if l == nil || l.State != registry.OperationFailed || l.Error == nil || l.Error.Failure == nil {
		return false
	}
	return l.Error.Failure.Kind == registry.FailureCorruptFile && p.Here()
}

// LastFetch says how the newest fetch ended, in one sentence.
func (p ModelPage) LastFetch() string {
	l := p.Files.Last
	switch {
	case l == nil:
		return ""
	case l.State == registry.OperationFailed:
		return "The last fetch failed " + minutesAgo(l.EndedAt, p.Now) + "."
	case l.State == registry.OperationCancelled:
		return "The last fetch was cancelled " + minutesAgo(l.EndedAt, p.Now) + "."
	}
	return upper(minutesAgo(l.EndedAt, p.Now)) + ": " + l.Sentence()
}

// upper begins a sentence.
func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// minutesAgo is Ago without seconds: they would draw a live part of the page anew at every look.
func minutesAgo(t, now time.Time) string {
	if d := now.Sub(t); !t.IsZero() && d < time.Minute {
		return "now"
	}
	return Ago(t, now)
}
