package hw

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ProcessRSS returns the bytes of RAM that a process and all that belongs to it hold: its descendants, and the members
// of the process group that it leads (children whose parent died belong to it only through the group).
//
// Counted is each process's Pss of /proc/PID/smaps_rollup: its own pages, plus of each shared page the part that it shares
// with so many processes. A weights file that three engines have mapped is thus counted once, a third for each, and
// counted at all only as far as it is in RAM. Where the kernel does not let us read that (another user's process) it is the
// resident set of /proc/PID/statm, which counts shared pages in full. Swapped-out pages are never counted.
//
// Reading Pss walks the page tables: about a millisecond per GiB mapped in small pages. CodeNotFound when there is no such
// process.
func ProcessRSS(pid int) (int64, error) { return processRSS(os.DirFS("/proc"), pid) }

// ProcessTree returns the processes that belong to a process, itself first: see ProcessRSS. CodeNotFound when there is no
// such process.
func ProcessTree(pid int) ([]int, error) { return processTree(os.DirFS("/proc"), pid) }

// ProcessTreeGPU returns the bytes that the processes hold on each device, by the device's index; -1 where one of them
// holds memory and the driver does not say how much.
func ProcessTreeGPU(sample registry.Sample, pids []int) map[int]int64 {
	held := map[int]int64{}
	for _, g := range sample.GPUs {
		for _, p := range g.Processes {
			if !slices.Contains(pids, p.PID) {
				continue
			}
			if p.Bytes < 0 || held[g.Index] < 0 {
				held[g.Index] = -1
				continue
			}
			held[g.Index] += p.Bytes
		}
	}
	return held
}

func processRSS(proc fs.FS, pid int) (int64, error) {
	pids, err := processTree(proc, pid)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, p := range pids {
		n, ok := pss(proc, p)
		if !ok {
			n = rss(proc, p)
		}
		sum += n
	}
	return sum, nil
}

func processTree(proc fs.FS, pid int) ([]int, error) {
	entries, err := fs.ReadDir(proc, ".")
	if err != nil {
		return nil, &registry.Error{Code: registry.CodeInternal, Op: "hw.processes", Msg: "The list of processes could not be read: " + err.Error(), Err: err}
	}
	children := map[int][]int{}
	var group []int
	found := false
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil || p <= 0 {
			continue
		}
		parent, pgrp, ok := parents(proc, p)
		if !ok {
			continue // it ended while we looked
		}
		found = found || p == pid
		children[parent] = append(children[parent], p)
		if pgrp == pid {
			group = append(group, p)
		}
	}
	if !found {
		return nil, &registry.Error{Code: registry.CodeNotFound, Op: "hw.processes", Msg: fmt.Sprintf("There is no process %d; it has ended.", pid)}
	}
	tree := []int{pid}
	seen := map[int]bool{pid: true}
	take := func(list []int) {
		for _, p := range list {
			if !seen[p] {
				seen[p] = true
				tree = append(tree, p)
			}
		}
	}
	take(group)
	for i := 0; i < len(tree); i++ {
		take(children[tree[i]])
	}
	return tree, nil
}

// parents returns the parent and the process group of a process.
func parents(proc fs.FS, pid int) (parent, pgrp int, ok bool) {
	b, err := fs.ReadFile(proc, strconv.Itoa(pid)+"/stat")
	if err != nil {
		return 0, 0, false
	}
	// PID (NAME) STATE PPID PGRP …; the name may hold spaces and parentheses, so begin behind the last one.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(fields) < 3 {
		return 0, 0, false
	}
	parent, err1 := strconv.Atoi(fields[1])
	pgrp, err2 := strconv.Atoi(fields[2])
	return parent, pgrp, err1 == nil && err2 == nil
}

// pss returns the proportional set size in bytes. ok is false where the kernel does not let us see it.
func pss(proc fs.FS, pid int) (int64, bool) {
	b, err := fs.ReadFile(proc, strconv.Itoa(pid)+"/smaps_rollup")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if v, found := strings.CutPrefix(line, "Pss:"); found {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib << 10, err == nil
		}
	}
	return 0, false
}

// rss returns the resident set in bytes; 0 for a process that has ended.
func rss(proc fs.FS, pid int) int64 {
	b, err := fs.ReadFile(proc, strconv.Itoa(pid)+"/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(b)) // size resident shared …, in pages
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}
