package haproxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Bounds of what CompareFiles tells.
const (
	mostFileDifferences = 50  // sentences
	fewLines            = 6   // lines of a section that are named
	mostOfOptions       = 160 // bytes of a server's options
)

// CompareFiles says in sentences how the file that would be written differs from the one that is there, as HAProxy reads
// them: comments, blanks, the order of sections, the name of the defaults section and Myelin's mark do not count. Of
// servers only the options are compared, between those of the same address: which servers there are is for Compare. Of a
// line no more is told than the words that say what it is about, since passwords stand behind them. There are at most
// 51 sentences.
func CompareFiles(have, would []byte) []string {
	a, b := sectionsOf(have), sectionsOf(would)
	var out []string
	for _, title := range b.titles {
		old, there := a.lines[title]
		if !there {
			out = append(out, clip(title)+": is not there, and would be added")
			continue
		}
		if text := compareLines(old, b.lines[title]); text != "" {
			out = append(out, clip(title)+": "+text)
		}
	}
	for _, title := range a.titles {
		if _, stays := b.lines[title]; !stays {
			out = append(out, clip(title)+": would be gone")
		}
	}
	inherited := func(backend string) []string {
		return DefaultServerWords(a.lines["defaults"], a.lines["backend "+backend])
	}
	out = append(out, compareOptions(ServersOfText(have), ServersOfText(would), inherited)...)
	if more := len(out) - mostFileDifferences; more > 0 {
		out = append(out[:mostFileDifferences], fmt.Sprintf("and %d more differences", more))
	}
	return out
}

// sections are the parts of a file, by their title lines.
type sections struct {
	titles []string
	lines  map[string][]string
}

func sectionsOf(cfg []byte) sections {
	s := sections{lines: map[string][]string{}}
	title := ""
	eachLine(cfg, func(kind, _, _ string, words []string) {
		switch {
		case isSection(words[0]):
			if len(words) == 2 && words[0] == "defaults" && words[1] == DefaultsName {
				words = words[:1]
			}
			title = strings.Join(words, " ")
			if _, twice := s.lines[title]; !twice {
				s.titles = append(s.titles, title)
				s.lines[title] = nil
			}
		case isAgentServer(kind, words) || isMark(kind, words):
		default:
			s.lines[title] = append(s.lines[title], strings.Join(words, " "))
		}
	})
	return s
}

// compareLines says what would become of a section's lines; empty: nothing.
func compareLines(have, would []string) string {
	if slices.Equal(have, would) {
		return ""
	}
	gone, added := without(have, would), without(would, have)
	var parts []string
	var changed []string // lines that both have, with other values
	gone = slices.DeleteFunc(gone, func(line string) bool {
		i := slices.IndexFunc(added, func(l string) bool { return aboutLine(l) == aboutLine(line) })
		if i < 0 {
			return false
		}
		changed, added = append(changed, line), slices.Delete(added, i, i+1)
		return true
	})
	if len(changed) > 0 {
		parts = append(parts, "would be otherwise: "+nameLines(changed))
	}
	if len(added) > 0 {
		parts = append(parts, "would be added: "+nameLines(added))
	}
	if len(gone) > 0 {
		parts = append(parts, "would be gone: "+nameLines(gone))
	}
	if len(parts) == 0 {
		return "the lines would be in another order"
	}
	return strings.Join(parts, "; ")
}

// without are the lines of a that b has not, as often as they are missing.
func without(a, b []string) []string {
	left := map[string]int{}
	for _, l := range b {
		left[l]++
	}
	var out []string
	for _, l := range a {
		if left[l]--; left[l] < 0 {
			out = append(out, l)
		}
	}
	return out
}

// nameLines names some lines by what they are about.
func nameLines(lines []string) string {
	var names []string
	for _, l := range lines {
		if name := aboutLine(l); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if more := len(names) - fewLines; more > 0 {
		names = append(names[:fewLines], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// aboutLine is what a line is about: its keyword, and the word behind it where that is part of the keyword.
func aboutLine(line string) string {
	words := strings.Fields(line)
	if len(words) == 0 {
		return `""` // an empty word in quotes
	}
	if len(words) > 1 && words[0] == "no" {
		return "no " + aboutLine(strings.Join(words[1:], " "))
	}
	if len(words) > 1 {
		switch words[0] {
		case "option", "timeout", "stats", "http-request", "http-response", "http-check", "tcp-request", "tcp-response",
			"tcp-check", "server", "acl", "bind", "use_backend", "default_backend", "default-server", "balance", "mode":
			return clip(words[0] + " " + words[1])
		}
	}
	return clip(words[0])
}

// compareOptions says which servers that both files have, by address, have other options. inherited are those that the
// servers of a backend have from default-server lines: others leave them there, Myelin writes them into each server too.
func compareOptions(have, would State, inherited func(backend string) []string) []string {
	var out []string
	for _, backend := range sortedNames(would) {
		old := make(map[netip.AddrPort]*Server, len(have[backend]))
		for i := range have[backend] {
			s := &have[backend][i]
			if before := old[canonical(s.Addr)]; before == nil || before.Admin == Maint {
				old[canonical(s.Addr)] = s
			}
		}
		example, count := "", 0
		for i := range would[backend] {
			s := &would[backend][i]
			before := old[canonical(s.Addr)]
			if before == nil || sameOptions(before, s, inherited(backend)) {
				continue
			}
			if count++; count == 1 {
				example = fmt.Sprintf("%s has %s, would have %s", clip(before.Name), describeOptions(*before), describeOptions(*s))
			}
		}
		switch {
		case count == 1:
			out = append(out, "backend "+backend+": the options of a server would be otherwise: "+example)
		case count > 1:
			out = append(out, fmt.Sprintf("backend %s: the options of %d servers would be otherwise: %s", backend, count, example))
		}
	}
	return out
}

// sameOptions tells whether two servers have the same options. A cookie without a directive is inert, and ours are left
// out then.
func sameOptions(have, would *Server, inherited []string) bool {
	if would.Cookie != "" && would.Cookie != have.Cookie {
		return false
	}
	return slices.Equal(have.Options, would.Options) || slices.Equal(slices.Concat(inherited, have.Options), would.Options)
}

func describeOptions(s Server) string {
	words := s.Options
	if s.Cookie != "" {
		words = append([]string{"cookie", s.Cookie}, words...)
	}
	text := strings.Join(words, " ")
	if len(text) > mostOfOptions {
		text = text[:mostOfOptions] + "…"
	}
	return fmt.Sprintf("%q", text)
}

func sortedNames(s State) []string {
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
