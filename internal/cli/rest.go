package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A start and busy hours leave memory behind that an idle server does not need: garbage of the heap, and the pages of
// the program's own file that were read once and are counted as ours as long as we map them. Go gives the first back
// in minutes and the system takes the second when it runs short. Here both are given back when the server comes to
// rest, so that what it holds then is what it needs.

const (
	// restEvery is how often it is looked whether the server rests.
	restEvery = 500 * time.Millisecond
	// restAfter is for how many looks in a row little was allocated when it does.
	restAfter = 3
	// restBelow is how much little is, in bytes between two looks. An idle server allocates a tenth of it.
	restBelow = 128 << 10
	// restWorth is how much was allocated since memory was last given back, in bytes, for it to be worth a collection.
	restWorth = 4 << 20
)

// giveBackAtRest gives memory back whenever the server comes to rest, until ctx ends.
func giveBackAtRest(ctx context.Context) {
	tick := time.NewTicker(restEvery)
	defer tick.Stop()
	var r rest
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(sample)
		if r.comes(sample[0].Value.Uint64()) {
			debug.FreeOSMemory()
			unmapUnused()
		}
	}
}

// rest tells from the bytes that were ever allocated when a server comes to rest.
type rest struct {
	last, given uint64
	quiet       int
}

// comes is called at each look and reports whether this is when memory should be given back.
func (r *rest) comes(allocated uint64) bool {
	if allocated-r.last < restBelow {
		r.quiet++
	} else {
		r.quiet = 0
	}
	r.last = allocated
	if r.quiet < restAfter || allocated-r.given < restWorth {
		return false
	}
	r.given = allocated
	return true
}

// unmapUnused takes the pages of files off this process that it has only read: the program's code and constants, and
// its libraries. What is used again is mapped again from the system's cache, in some microseconds. Where the system
// cannot do that, nothing happens: it is about memory alone.
func unmapUnused() {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, m := range fileMappings(f) {
		// Not through unix.Madvise, which wants the memory as a slice.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED) // a refusal changes nothing
	}
}

// mapping is a part of the address space.
type mapping struct{ from, to uintptr }

// fileMappings returns the mappings of /proc/PID/smaps that are private, of a file and not writable, and in which no page
// is our own: a page that the dynamic linker wrote to before it was protected would be lost.
func fileMappings(smaps io.Reader) (out []mapping) {
	var at mapping
	good := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		first, rest, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasSuffix(first, ":") {
			// 00400000-00417000 r--p 00000000 fe:00 262434      /usr/bin/llmm
			var access, offset, device string
			var inode uint64
			_, err := fmt.Sscanf(rest, "%s %s %s %d", &access, &offset, &device, &inode)
			_, rangeErr := fmt.Sscanf(first, "%x-%x", &at.from, &at.to)
			good = err == nil && rangeErr == nil && inode != 0 && strings.HasPrefix(access, "r-") && strings.HasSuffix(access, "p")
			continue
		}
		// Anonymous comes once in each mapping, and is how much of it is not as in the file.
		if first == "Anonymous:" && good {
			if strings.TrimSpace(rest) == "0 kB" {
				out = append(out, at)
			}
			good = false
		}
	}
	if lines.Err() != nil {
		return nil
	}
	return out
}
