package haproxy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Capabilities is what a version of HAProxy can do at run time. It is where to begin, not the last word: HAProxy's
// own replies are (see ErrUnfit, ErrExperimental, ErrUnknownCommand).
type Capabilities struct {
	Version             string
	Major, Minor, Patch int

	DynamicServers    bool // "add server" and "del server" without experimental mode (2.6)
	Cookie            bool // "cookie" on "add server" (3.0, 2.8.8, 2.6.18)
	InitState         bool // "init-state" on "add server" (3.1)
	DynamicBackends   bool // "add backend" (3.4)
	DistinctNames     bool // a frontend and a backend must not have the same name (3.3)
	NeedsPoolKeywords bool // a server added at run time reuses no connections unless told its pool's size (2.x)
}

// CapabilitiesOf reads the version of "show info", such as "2.6.12-1+deb12u4". A version that cannot be read has no
// capabilities.
func CapabilitiesOf(version string) Capabilities {
	c := Capabilities{Version: version}
	number, _, _ := strings.Cut(version, "-")
	parts := strings.SplitN(number, ".", 3)
	if len(parts) < 2 {
		return c
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	if err1 != nil || err2 != nil || major < 0 || minor < 0 {
		return c
	}
	c.Major, c.Minor = major, minor
	if len(parts) == 3 {
		c.Patch, _ = strconv.Atoi(parts[2]) // "0" where it is no number
	}
	c.DynamicServers = c.atLeast(2, 6)
	// The fixes of April 2024 brought it to the stable versions (seen on 2.8.30; those of 2.6 and 2.8 by their changelogs).
	c.Cookie = c.atLeast(3, 0) || c.patchOf(2, 8, 8) || c.patchOf(2, 6, 18)
	c.InitState = c.atLeast(3, 1)
	c.DynamicBackends = c.atLeast(3, 4)
	c.DistinctNames = c.atLeast(3, 3)
	// Upstream 8a31783b6; late stable versions of 2.6 and 2.8 have it too, where the words do no harm.
	c.NeedsPoolKeywords = !c.atLeast(3, 0)
	return c
}

func (c Capabilities) atLeast(major, minor int) bool {
	return c.Major > major || c.Major == major && c.Minor >= minor
}

// patchOf tells whether it is a stable version of major.minor from patch on.
func (c Capabilities) patchOf(major, minor, patch int) bool {
	return c.Major == major && c.Minor == minor && c.Patch >= patch
}

// Warnings are what an operator should know of this version, one sentence each. leastconn: a backend balances that way.
func (c Capabilities) Warnings(leastconn bool) []string {
	var out []string
	if leastconn && (c.patchOf(3, 2, 6) && !c.patchOf(3, 2, 19) || c.patchOf(3, 3, 0)) {
		out = append(out, fmt.Sprintf(`HAProxy %s can hang and abort when a server joins or leaves a backend with "balance leastconn" `+
			`(its issue 3360); install 3.2.19 or later, or write "balance roundrobin" or "balance random"`, c.Version))
	}
	if c.patchOf(2, 6, 0) && !c.patchOf(2, 6, 13) {
		out = append(out, fmt.Sprintf(`HAProxy %s can crash when a server is deleted while a slow reader has "show stat" or "show servers" open; `+
			`myelin deletes late, one at a time, and while it sees nobody else connected to the socket; let other programs read quickly, or install a later version`, c.Version))
	}
	return out
}

// BalancesLeastconn tells whether a backend with these lines uses "balance leastconn". The arguments are those of
// RuntimeUnfit.
func BalancesLeastconn(backendLines, defaultsLines []string) bool {
	f := strings.Fields(lastLine("balance", defaultsLines, backendLines))
	return len(f) > 1 && f[1] == "leastconn"
}

// extraWords are the words to add to an "add server" with these options. The two values are those that a server of
// the configuration file has by default.
func (c Capabilities) extraWords(options []string) []string {
	if !c.NeedsPoolKeywords {
		return nil
	}
	var out []string
	for _, w := range [...][2]string{{"pool-purge-delay", "5s"}, {"pool-max-conn", "-1"}} {
		if !hasOption(options, w[0]) {
			out = append(out, w[0], w[1])
		}
	}
	return out
}

// RuntimeUnfit tells why the servers of a backend cannot be changed at run time by a HAProxy with capabilities c, in
// words for the operator; "" when nothing speaks against it. backendLines are the lines of the section, defaultsLines
// those of the defaults section that it takes the rest from. A server without a name stands for what all are to have.
func RuntimeUnfit(backendLines, defaultsLines []string, servers []Server, c Capabilities) string {
	if !c.DynamicServers {
		return fmt.Sprintf("HAProxy %s cannot add servers at run time; 2.6 and later can", orUnknown(c.Version))
	}
	if why := staticBalance(backendLines, defaultsLines); why != "" {
		return why
	}
	if !c.Cookie {
		if mode := lastLine("mode", defaultsLines, backendLines); mode != "mode tcp" {
			if line := lastLine("cookie", defaultsLines, backendLines); line != "" {
				return fmt.Sprintf("%q needs a cookie on each server, which HAProxy %s does not take at run time; "+
					"2.6.18, 2.8.8, 3.0 and later do", clip(line), c.Version)
			}
		}
	}
	var checked []string
	for _, s := range servers {
		if s.Cookie != "" && !c.Cookie {
			return fmt.Sprintf("server %s has a cookie, which HAProxy %s does not take at run time; 2.6.18, 2.8.8, 3.0 and later do",
				s.Name, c.Version)
		}
		if checked != nil && slices.Equal(checked, s.Options) {
			continue // most servers of a backend have the same options
		}
		if why := c.optionsUnfit(s.Options); why != "" {
			if s.Name == "" {
				return why // what every server is to have
			}
			return fmt.Sprintf("server %s: %s", s.Name, why)
		}
		checked = s.Options
	}
	return ""
}

func (c Capabilities) optionsUnfit(options []string) string {
	err := eachOption(options, func(word, _ string, o optionWord) error {
		if !c.atLeast(o.since[0], o.since[1]) {
			return fmt.Errorf("option %q needs HAProxy %d.%d at run time, this is %s",
				word, o.since[0], o.since[1], c.Version)
		}
		return nil
	})
	if err != nil {
		return err.Error()
	}
	return ""
}

// staticBalance: a backend takes servers at run time only when its algorithm is one that can grow (HAProxy's
// BE_LB_PROP_DYN): roundrobin, leastconn, first, random, and the hashes with "hash-type consistent". An algorithm
// that is not known here is left for HAProxy to judge.
func staticBalance(backendLines, defaultsLines []string) string {
	balance := strings.Fields(lastLine("balance", defaultsLines, backendLines))
	if len(balance) < 2 {
		return "" // roundrobin up to 3.2, random from 3.3 on
	}
	name, _, _ := strings.Cut(balance[1], "(")
	switch name {
	case "static-rr":
		return `"balance static-rr" does not take servers at run time; write "balance roundrobin"`
	case "source", "uri", "url_param", "hdr", "hash", "rdp-cookie":
		hash := strings.Fields(lastLine("hash-type", defaultsLines, backendLines))
		if len(hash) > 1 && hash[1] == "consistent" {
			return ""
		}
		return fmt.Sprintf(`"balance %s" takes servers at run time only with "hash-type consistent"; add that line`,
			clip(strings.Join(balance[1:], " ")))
	}
	return ""
}

// lastLine is the line that begins with word and is in force: the last one, those of later groups before those of
// earlier ones. Blanks are normalised and comments cut; "" when there is none.
func lastLine(word string, groups ...[]string) string {
	for _, lines := range slices.Backward(groups) {
		for _, line := range slices.Backward(lines) {
			line, _, _ = strings.Cut(line, "#")
			if fields := strings.Fields(line); len(fields) > 0 && fields[0] == word {
				return strings.Join(fields, " ")
			}
		}
	}
	return ""
}

func orUnknown(version string) string {
	if version == "" {
		return "of unknown version"
	}
	return version
}
