package hw

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// cgroupMemory is what the cgroups of this process allow. In bytes.
type cgroupMemory struct {
	limit     int64 // the lowest on the way up to the root; 0 when there is none
	available int64 // the least that any of the limited cgroups has left; it may be of another one than limit
}

// unlimited is where a limit is none: cgroup v1 writes the largest multiple of the page size below 2^63.
const unlimited = 1 << 62

// cgroupPlace is where the memory of this process is controlled.
type cgroupPlace struct {
	mount, within string // below the root; our own is within the mount
	version       int    // 1 or 2; 0 where there is none
}

// findCgroup finds our cgroup in the tree at root ("/" on a real machine).
func findCgroup(root fs.FS) cgroupPlace {
	own, version := ownCgroup(root)
	if version == 0 {
		return cgroupPlace{}
	}
	mount, within, ok := cgroupMount(root, version, own)
	if !ok {
		return cgroupPlace{}
	}
	return cgroupPlace{mount, within, version}
}

// readCgroup reads the memory limits of this process's cgroup and of all above it, in version 1 or 2. What a cgroup has
// left is limit − (current − inactive_file): pages of files that nobody used lately are given back before anything is
// refused. Whatever is absent or cannot be understood is no limit.
func readCgroup(root fs.FS, at cgroupPlace) (found cgroupMemory) {
	if at.version == 0 {
		return cgroupMemory{}
	}
	for within := at.within; ; within = path.Dir(within) {
		if limit, left, ok := cgroupLevel(root, path.Join(at.mount, within), at.version); ok {
			if found.limit == 0 || left < found.available {
				found.available = left
			}
			if found.limit == 0 || limit < found.limit {
				found.limit = limit
			}
		}
		if within == "/" || within == "." || within == "" {
			return found
		}
	}
}

// ownCgroup returns the path of our cgroup as /proc/self/cgroup has it, and the version of the hierarchy that
// controls memory: 1 if one of version 1 does, else 2; 0 if there is none.
func ownCgroup(root fs.FS) (own string, version int) {
	b, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return "", 0
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3) // hierarchy:controllers:path
		if len(parts) != 3 {
			continue
		}
		if hasWord(parts[1], "memory") {
			return parts[2], 1
		}
		if parts[0] == "0" && parts[1] == "" {
			own, version = parts[2], 2
		}
	}
	return own, version
}

// cgroupMount returns where the hierarchy is mounted (without the leading slash) and our path within that mount. A
// container often sees only the part of the hierarchy that is its own, at the mount's top; the path in /proc/self/cgroup
// may then be one of the host.
func cgroupMount(root fs.FS, version int, own string) (mount, within string, ok bool) {
	b, err := fs.ReadFile(root, "proc/self/mountinfo")
	if err != nil {
		return "", "", false
	}
	for line := range strings.Lines(string(b)) {
		// 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
		left, right, found := strings.Cut(strings.TrimRight(line, "\n"), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !found || len(l) < 5 || len(r) < 3 {
			continue
		}
		if (version == 2 && r[0] != "cgroup2") || (version == 1 && (r[0] != "cgroup" || !hasWord(r[2], "memory"))) {
			continue
		}
		top, at := unescape(l[3]), strings.TrimPrefix(unescape(l[4]), "/")
		switch {
		case top == "/" || own == top:
			within = path.Clean("/" + strings.TrimPrefix(own, strings.TrimSuffix(top, "/")))
		case strings.HasPrefix(own, top+"/"):
			within = strings.TrimPrefix(own, top)
		default:
			within = "/" // the mount shows another part: a container's own, as far as we can know
		}
		// With a cgroup namespace a path above our own reads as /../..; the mount's top is as far as we see.
		if strings.Contains(within, "..") || !exists(root, path.Join(at, within)) {
			within = "/"
		}
		return at, within, true
	}
	return "", "", false
}

// cgroupLevel reads one cgroup's limit and what is left below it.
func cgroupLevel(root fs.FS, dir string, version int) (limit, left int64, ok bool) {
	var current, reclaimable int64
	switch version {
	case 1:
		limit, ok = number(root, path.Join(dir, "memory.limit_in_bytes"))
		current, _ = number(root, path.Join(dir, "memory.usage_in_bytes"))
	case 2:
		limit, ok = number(root, path.Join(dir, "memory.max"))
		// Beyond memory.high the kernel slows a process down to a crawl, which for a model is as good as a limit.
		if high, set := number(root, path.Join(dir, "memory.high")); set && (!ok || high < limit) {
			limit, ok = high, true
		}
		current, _ = number(root, path.Join(dir, "memory.current"))
	}
	if !ok || limit >= unlimited {
		return 0, 0, false
	}
	b, err := fs.ReadFile(root, path.Join(dir, "memory.stat"))
	if err == nil {
		key := map[int]string{1: "total_inactive_file", 2: "inactive_file"}[version] // both with those below
		for line := range strings.Lines(string(b)) {
			if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
				reclaimable, _ = strconv.ParseInt(v, 10, 64)
			}
		}
	}
	used := max(current-max(reclaimable, 0), 0)
	return limit, max(limit-used, 0), true
}

// number reads a file with one number that is not negative. "max" and garbage are none.
func number(root fs.FS, name string) (int64, bool) {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil && n >= 0
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

func hasWord(list, word string) bool {
	for w := range strings.SplitSeq(list, ",") {
		if w == word {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo for spaces, tabs, newlines and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
