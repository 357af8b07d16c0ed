package view

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Storage is the page of what occupies the disks.
type Storage struct {
	Page
	Can      StorageCan
	Disks    []Device // one bar each
	Rows     []Stored
	Bytes    int64 // of all artifacts together
	Partial  int64
	Unused   int64
	Problems []string

	// For admins.
	Retention map[string]string // the form's fields, as typed or as stored
	DryRun    []registry.RetentionItem
	Dry       bool              // DryRun is an answer, even when it is empty
	Limits    map[string]string // MiB/s by "total" and source
	Roots     registry.RootFolders
	RootsText string
	Errors    map[string]string // by "retention.FIELD", "limits.FIELD", "roots"
}

// StorageCan says what the caller may do with what is stored.
type StorageCan struct {
	Manage bool // policies, limits, folders, unfinished downloads
}

// Stored is one line of what is stored: one revision, or the unfinished downloads of a path.
type Stored struct {
	registry.StoredArtifact
	Hidden  bool    // of another team: not named
	Place   int     // in the list, for the ids of rows without a name
	Share   float64 // of the largest, for the thin bar
	Color   int     // that its bar has
	Can     bool    // the caller may delete it, if it is not in use
	Verify  string  // the model whose files these are, if the caller may have them read again
	LastUse string
}

// StorageInput is what the page is made of.
type StorageInput struct {
	Storage registry.Storage // with folders
	Hidden  []bool           // of Storage.Artifacts, those whose names the caller may not see
	Can     []bool           // of Storage.Artifacts, those that the caller may delete
	Verify  []string         // of Storage.Artifacts, the models whose files the caller may have read again; "" none
	Now     time.Time
}

// StorageOf makes the bars and the list, the largest first and revisions of one path together.
func StorageOf(in StorageInput) Storage {
	st := in.Storage
	v := Storage{Bytes: st.Bytes, Partial: st.Partial, Unused: st.Unused, Problems: st.Problems, Errors: map[string]string{}}
	colors := palette{}
	v.Disks = disksOf(in, colors)
	largest, sums := int64(0), map[string]int64{}
	for _, a := range st.Artifacts {
		largest = max(largest, a.Bytes+a.Partial)
		sums[pathKey(a)] += a.Own + a.Partial
	}
	for i, a := range st.Artifacts {
		row := Stored{StoredArtifact: a, Hidden: in.Hidden[i], Place: i, Can: in.Can[i] && !in.Hidden[i] && a.Revision != "", Color: colors[pathKey(a)]}
		if i < len(in.Verify) && !in.Hidden[i] {
			row.Verify = in.Verify[i]
		}
		if largest > 0 {
			row.Share = float64(a.Bytes+a.Partial) / float64(largest) * 100
		}
		at := a.UsedAt
		if a.ModifiedAt.After(at) {
			at = a.ModifiedAt
		}
		row.LastUse = minutesAgo(at, in.Now)
		v.Rows = append(v.Rows, row)
	}
	slices.SortStableFunc(v.Rows, func(a, b Stored) int {
		ka, kb := pathKey(a.StoredArtifact), pathKey(b.StoredArtifact)
		return cmp.Or(cmp.Compare(sums[kb], sums[ka]), cmp.Compare(ka, kb), cmp.Compare(b.Bytes+b.Partial, a.Bytes+a.Partial), cmp.Compare(a.Revision, b.Revision))
	})
	return v
}

func pathKey(a registry.StoredArtifact) string { return string(a.Source) + ":" + a.Path }

// named is how many models a disk's bar tells apart; the rest are one part.
const named = Colors - 1

// disksOf makes one bar for each disk: what models use, what several revisions share, what nobody uses, what has not
// arrived whole, what is not ours, and what is free.
func disksOf(in StorageInput, colors palette) []Device {
	var out []Device
	for i, d := range in.Storage.Disks {
		if d.Total <= 0 || sameDisk(in.Storage.Disks, i) != i {
			continue
		}
		dev := Device{ID: "disk-" + strconv.Itoa(i), Name: diskName(in.Storage.Disks, i), Total: d.Total, Used: d.Total - d.Free}
		own, most := map[string]int64{}, map[string]int64{}
		var unused, partial int64
		for j, a := range in.Storage.Artifacts {
			if sameDisk(in.Storage.Disks, diskOf(in.Storage.Disks, a.Folder)) != i {
				continue
			}
			key := pathKey(a)
			partial += a.Partial
			most[key] = max(most[key], a.Bytes-a.Own)
			switch {
			case len(a.Models) == 0 && !a.InUse:
				unused += a.Own
			case in.Hidden[j]:
				own["weights of other teams"] += a.Own
			default:
				own[key] += a.Own
			}
		}
		dev.Segments = append(dev.Segments, modelShares(own, colors)...)
		add := func(label string, n int64, color int, promised bool) {
			if n > 0 {
				dev.Segments = append(dev.Segments, Share{Label: label + " · " + Bytes(n), Bytes: n, Color: color, Promised: promised})
			}
		}
		var shared, ours int64
		for _, n := range most {
			shared += n
		}
		add("shared by revisions", shared, Colors, false)
		add("unused", unused, Colors, true)
		add("unfinished downloads", partial, 0, true)
		for _, s := range dev.Segments {
			ours += s.Bytes
		}
		if other := dev.Used - ours; other > d.Total/1000 {
			add("other files", other, 0, false)
		}
		dev.layout()
		out = append(out, dev)
	}
	return out
}

func modelShares(own map[string]int64, colors palette) (out []Share) {
	keys := make([]string, 0, len(own))
	for k := range own {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(own[b], own[a]), cmp.Compare(a, b)) })
	var rest int64
	for i, k := range keys {
		if own[k] == 0 {
			continue
		}
		if i >= named && len(keys) > Colors {
			rest += own[k]
			continue
		}
		if _, ok := colors[k]; !ok {
			colors[k] = len(colors)%named + 1 // by size: the largest have the first colours
		}
		label := k
		if _, path, ok := strings.Cut(k, ":"); ok {
			label = shortPath(path)
		}
		out = append(out, Share{Label: label + " · " + Bytes(own[k]), ModelID: k, Color: colors[k], Bytes: own[k]})
	}
	if rest > 0 {
		out = append(out, Share{Label: Plural(len(keys)-named, "other model", "other models") + " · " + Bytes(rest), Color: Colors, Bytes: rest})
	}
	return out
}

// shortPath is the last two parts of a path: enough to know a model by.
func shortPath(p string) string {
	parts := strings.Split(strings.TrimRight(p, "/"), "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/")
}

// diskOf is the disk that a folder lies on: the one with the longest path that the folder begins with, the first if none
// does.
func diskOf(disks []registry.Disk, folder string) int {
	best, length := 0, -1
	for i, d := range disks {
		p := strings.TrimRight(d.Path, "/")
		if (folder == d.Path || strings.HasPrefix(folder, p+"/")) && len(p) > length {
			best, length = i, len(p)
		}
	}
	return best
}

// sameDisk is the first of the folders that lie on the same disk as the one at i: two disks do not have the same size and
// the same bytes free.
func sameDisk(disks []registry.Disk, i int) int {
	for j, d := range disks[:min(i, len(disks))] {
		if d.Total == disks[i].Total && d.Free == disks[i].Free {
			return j
		}
	}
	return i
}

// diskName names a disk by every folder that lies on it.
func diskName(disks []registry.Disk, i int) string {
	var paths []string
	for j, d := range disks {
		if sameDisk(disks, j) == i && !slices.Contains(paths, d.Path) {
			paths = append(paths, d.Path)
		}
	}
	return strings.Join(paths, " and ")
}

// ID is the id attribute of its row.
func (s Stored) ID() string {
	key := pathKey(s.StoredArtifact) + "@" + s.Revision
	if s.Hidden {
		key += "#" + strconv.Itoa(s.Place)
	}
	return "s" + RowID(key)[1:]
}

// Sub is the line below its name: source, names, revision, files.
func (s Stored) Sub() string {
	parts := []string{SourceName(s.Source)}
	if s.Hidden {
		return parts[0]
	}
	if len(s.Names) > 0 {
		parts = append(parts, strings.Join(s.Names, ", "))
	}
	if s.Revision != "" {
		parts = append(parts, ShortRevision(s.Revision), Plural(s.Files, "file", "files"))
		if s.Incomplete && s.Missing > 0 {
			parts = append(parts, Bytes(s.Missing)+" missing")
		}
	} else {
		parts = append(parts, "unfinished")
	}
	return strings.Join(parts, " · ")
}

// Split says how its bytes are shared; "" when they are all its own.
func (s Stored) Split() string {
	var parts []string
	if s.Bytes > 0 && s.Own < s.Bytes {
		parts = append(parts, Bytes(s.Own)+" its own")
	}
	if s.Partial > 0 && s.Bytes > 0 && s.Revision != "" {
		parts = append(parts, Bytes(s.Partial)+" unfinished")
	}
	return strings.Join(parts, ", ")
}

// Use is who uses it, as a dot and a word.
func (s Stored) Use() Status {
	switch {
	case s.Hidden && s.InUse:
		return Status{"ready", "In use"}
	case s.Hidden:
		return Status{"", "Another team"}
	case s.Revision == "":
		return Status{"wait", "Unfinished"}
	case s.InUse:
		return Status{"ready", "In use"}
	case s.Incomplete:
		return Status{"wait", "Incomplete"}
	case len(s.Models) > 0:
		return Status{"", "Registered"}
	}
	return Status{"", "Nobody"}
}

// DeleteURL asks before it is deleted.
func (s Stored) DeleteURL() string {
	return "/storage/delete?" + storedQuery(s.StoredArtifact)
}

// Frees is what deleting it brings back, in bytes.
func (s Stored) Frees() int64 { return s.Own + s.Partial }

// DeleteSays are the consequences of deleting it, in words.
func (s Stored) DeleteSays() string {
	line := Bytes(s.Frees()) + " come back."
	if s.Incomplete {
		line += " A fetch of it has not ended: the next one begins anew instead of going on."
	}
	if s.Own < s.Bytes {
		line += " " + Bytes(s.Bytes-s.Own) + " stay, since other revisions use them."
	}
	switch len(s.Models) {
	case 0:
		line += " No model is registered with it."
	case 1:
		line += " " + s.Models[0] + " stays registered and fetches " + Bytes(s.Own+s.Missing+s.Partial) + " again when it is loaded."
	default:
		line += fmt.Sprintf(" %s stay registered and fetch it again when one is loaded: %s.", Plural(len(s.Models), "model", "models"), strings.Join(s.Models, ", "))
	}
	if s.Source == registry.SourceHuggingFace {
		line += " Python programs that share this cache lose it, too."
	}
	return line
}

// InUseSays is why it cannot be deleted now.
func (s Stored) InUseSays() string {
	who := "A model"
	if len(s.Models) > 0 {
		who = strings.Join(s.Models, ", ")
	}
	return who + " is loaded, being loaded or being fetched. Unload it, or cancel what is under way, and delete then."
}

// Summary is what all of it takes, in one sentence.
func (v Storage) Summary() string {
	if len(v.Rows) == 0 {
		return "Nothing has been fetched yet."
	}
	line := Bytes(v.Bytes) + " of weights"
	if v.Unused > 0 {
		line += ", " + Bytes(v.Unused) + " that no model is registered with"
	}
	if v.Partial > 0 {
		line += ", and " + Bytes(v.Partial) + " of unfinished downloads"
	}
	return line + "."
}

// DrySays is what the retention policy would delete.
func (v Storage) DrySays() string {
	if len(v.DryRun) == 0 {
		return "Nothing would be deleted now."
	}
	var n int64
	revisions, partials := 0, 0
	for _, it := range v.DryRun {
		n += it.Freed
		if it.Revision == "" {
			partials++
		} else {
			revisions++
		}
	}
	what := Plural(revisions, "revision", "revisions")
	switch {
	case revisions == 0:
		what = Plural(partials, "unfinished download", "unfinished downloads")
	case partials > 0:
		what += " and " + Plural(partials, "unfinished download", "unfinished downloads")
	}
	return fmt.Sprintf("Would delete %s, %s.", what, Bytes(n))
}

// RetentionSays is the policy in one sentence, for who only looks.
func RetentionSays(r registry.Retention) string {
	var parts []string
	if r.UnusedFor > 0 {
		parts = append(parts, "revisions that nobody used for "+Duration(time.Duration(r.UnusedFor)))
	}
	if r.MaxBytes > 0 {
		parts = append(parts, "the longest unused ones above "+Bytes(r.MaxBytes))
	}
	if r.PartialFor > 0 {
		parts = append(parts, "unfinished downloads that have not grown for "+Duration(time.Duration(r.PartialFor)))
	}
	if len(parts) == 0 {
		return "Nothing is deleted by itself."
	}
	return "Deleted once an hour: " + strings.Join(parts, "; ") + "."
}

// Secrets is the page of stored secrets. Their values are never shown.
type Secrets struct {
	Page
	Secrets []Secret
	Teams   []string // that the caller may store secrets for
	Every   bool     // the caller may store secrets of every team
	Values  map[string]string
	Errors  map[string]string
	Ask     *Secret // asked about before it is deleted
}

// Secret is one secret and whether the caller may change it.
type Secret struct {
	registry.Secret
	Can bool
}

// ID is the id attribute of its row.
func (s Secret) ID() string { return "x" + RowID(s.Team + "/" + s.Name)[1:] }

// Whose writes the team that may use it.
func (s Secret) Whose() string {
	if s.Team == "" {
		return "every team"
	}
	return s.Team
}

// Reference is what a model names it by.
func (s Secret) Reference() string { return "secret:" + s.Name }

// secretUsersShown is how many of the models that use a secret its row names.
const secretUsersShown = 3

// Users are the models that its row names, and how many more there are.
func (s Secret) Users() (shown []string, more int) {
	n := min(len(s.UsedBy), secretUsersShown)
	return s.UsedBy[:n], len(s.UsedBy) - n
}

// DeleteSays are the consequences of deleting it, in words.
func (s Secret) DeleteSays() string {
	line := "Its value cannot be had back."
	switch len(s.UsedBy) {
	case 0:
		return line + " No model refers to it."
	case 1:
		line += " " + s.UsedBy[0] + " uses it and"
	default:
		shown, more := s.Users()
		who := strings.Join(shown, ", ")
		if more > 0 {
			who += " and " + Plural(more, "more model", "more models")
		}
		line += " " + who + " use it and"
	}
	return line + " can neither be fetched nor loaded anew until there is another secret of this name. What is loaded stays loaded."
}
