package process

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// EnvTag is the variable in an engine's environment by which it, and all that it starts, is found again. Its value
// is INSTALLATION/INSTANCE.
const EnvTag = "LLMM_INSTANCE"

// pollGone is how often a group is looked at while it ends, and killPatience how long killed processes may take to
// disappear before that is an error: the kernel kills at once, except what hangs in a driver or on a dead disk.
const (
	pollGone     = 10 * time.Millisecond
	killPatience = 30 * time.Second
)

// Tagged is a process that carries our tag.
type Tagged struct {
	PID        int
	Group      int // process group
	InstanceID string
	StartTicks uint64
}

// Identity returns the identity of the tagged process.
func (t Tagged) Identity() Identity {
	return Identity{PID: t.PID, StartTicks: t.StartTicks, BootID: BootID()}
}

// FindTagged lists the running processes that an installation has started, also those that left their process group.
// prefix is the installation, the part of the tag before the slash.
func FindTagged(prefix string) ([]Tagged, error) {
	prefix = strings.TrimSuffix(prefix, "/") + "/"
	if prefix == "/" {
		return nil, registry.Errorf(registry.CodeInternal, "an empty tag would match the engines of other installations")
	}
	var out []Tagged
	for _, st := range allStats() {
		if st.dead() {
			continue
		}
		tag := tagOf(st)
		if id, ok := strings.CutPrefix(tag, prefix); ok && id != "" {
			out = append(out, Tagged{PID: st.pid, Group: st.group, InstanceID: id, StartTicks: st.start})
		}
	}
	return out, nil
}

// Members lists the processes of an instance by their numbers: those that carry its tag, and those in the process group of
// one that does. Programs that write a title of their own over their environment are found by the latter only.
func Members(prefix, instanceID string) ([]int, error) {
	tagged, err := FindTagged(prefix)
	if err != nil {
		return nil, err
	}
	pids, groups := map[int]bool{}, map[int]bool{}
	for _, t := range tagged {
		if t.InstanceID == instanceID {
			pids[t.PID], groups[t.Group] = true, true
		}
	}
	var out []int
	for _, st := range allStats() {
		if !st.dead() && (pids[st.pid] || groups[st.group]) {
			out = append(out, st.pid)
		}
	}
	return out, nil
}

// tagOf returns the tag of a process, or "" if it has none or belongs to somebody else.
func tagOf(st stat) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", st.pid))
	if err != nil {
		return ""
	}
	for kv := range strings.SplitSeq(string(b), "\x00") {
		if v, ok := strings.CutPrefix(kv, EnvTag+"="); ok {
			return v
		}
	}
	return ""
}

// group is the processes of one instance: those in its process group, and those that carry its tag.
type group struct {
	leader Identity
	tag    string
	// pinned is true while the leader is our own unreaped child: its number, and so that of the group, cannot be
	// given to anybody else.
	pinned bool
}

// members lists the group without its dead. With deep, processes that left the group are found by their tag, which
// needs a look at every environment.
func (g group) members(deep bool) []stat {
	var in, tagged []stat
	foreign := false
	for _, st := range allStats() {
		if st.pid == g.leader.PID && st.start != g.leader.StartTicks {
			foreign = true
		}
		if st.dead() {
			continue
		}
		switch {
		case st.group == g.leader.PID:
			in = append(in, st)
		case deep && g.tag != "" && tagOf(st) == g.tag:
			tagged = append(tagged, st)
		}
	}
	// A re-attached leader that died is reaped by init, and its number may be a stranger's group since. Then only
	// those with our tag are ours.
	if foreign || (!g.pinned && !g.leader.Alive()) {
		kept := in[:0]
		for _, st := range in {
			if g.tag != "" && tagOf(st) == g.tag {
				kept = append(kept, st)
			}
		}
		in = kept
	}
	return append(in, tagged...)
}

// signal sends sig to every member, each through a pidfd. It returns how many there were.
func (g group) signal(sig syscall.Signal, deep bool) int {
	ms := g.members(deep)
	for _, m := range ms {
		fd, err := openPidfd(Identity{PID: m.pid, StartTicks: m.start, BootID: g.leader.BootID})
		if err != nil {
			continue
		}
		_ = fd.signal(sig) // ErrGone is what we want; EPERM shows as a process that is left
		fd.close()
	}
	return len(ms)
}

// kill ends every member and returns when none is left, or the ones left when ctx ends. A process that forks while it
// is being killed is caught by the next round.
func (g group) kill(ctx context.Context) []stat {
	tick := time.NewTicker(pollGone)
	defer tick.Stop()
	for {
		if g.signal(syscall.SIGKILL, true) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return g.members(true)
		case <-tick.C:
		}
	}
}

// KillGroup ends a tagged process, its process group and all that carries the same tag, at once. It returns when they
// are gone; CodeInternal names those that could not be killed before ctx ended.
func KillGroup(ctx context.Context, prefix string, t Tagged) error {
	lead := t.Identity()
	if t.Group != t.PID {
		// The leader may be gone: then the members of its group are told by their tag.
		lead = Identity{PID: t.Group, BootID: BootID()}
		if st, err := readStat(t.Group); err == nil {
			lead.StartTicks = st.start
			if tagOf(st) != strings.TrimSuffix(prefix, "/")+"/"+t.InstanceID {
				lead.StartTicks = 0 // somebody else's group: take only what has our tag
			}
		}
	}
	g := group{leader: lead, tag: strings.TrimSuffix(prefix, "/") + "/" + t.InstanceID}
	if left := g.kill(ctx); len(left) > 0 {
		return leftError("process.KillGroup", t.InstanceID, left)
	}
	return nil
}

func leftError(op, what string, left []stat) error {
	pids := make([]string, len(left))
	for i, s := range left {
		pids[i] = fmt.Sprintf("%d (state %c)", s.pid, s.state)
	}
	return &registry.Error{Code: registry.CodeInternal, Op: op, Msg: fmt.Sprintf(
		"Could not end all of %s: process %s is still there after SIGKILL. It hangs in the kernel, usually in a driver or on a disk that does not answer; look at dmesg",
		what, strings.Join(pids, ", "))}
}
