package cli

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	bundleMost     = 64 << 20        // bytes of one file of a bundle; what is behind them is left out
	bundlePatience = 5 * time.Second // for one who is asked
)

func (a *app) bundleCommand() *cobra.Command {
	var file, stateDir string
	c := &cobra.Command{
		Use:   "bundle [-c FILE] [--file FILE]",
		Short: "Pack what a ticket needs into one file, without secrets",
		Long: "Packs the history of this host, what the agent and the registrar say of themselves, their configuration,\n" +
			"haproxy.cfg, versions, and the kernel's settings into a tar.gz. It works with everything down: MANIFEST in it says\n" +
			"what is missing, and why. Without -c the files in /etc/myelin are taken, where they are.\n\n" +
			"Passwords, credentials and the like are taken out; keys and files of credentials are not read. Addresses, names of\n" +
			"hosts and services are in it: look at it before you hand it on.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.bundle(c.Context(), file, stateDir) },
	}
	c.Flags().StringVar(&file, "file", "", "the `FILE` to write, \"-\" for the output (default: myelin-bundle-HOST-TIME.tar.gz here)")
	c.Flags().StringVar(&stateDir, "state-dir", "", "`DIR` of the history (default: that of -c FILE, else "+config.DefaultStateDir+")")
	return c
}

// bundle writes one to a file, or to the output.
func (a *app) bundle(ctx context.Context, file, stateDir string) error {
	host, err := os.Hostname()
	if err != nil {
		host = "host"
	}
	name := fmt.Sprintf("myelin-bundle-%s-%s", host, time.Now().UTC().Format("20060102T150405Z"))
	if file == "-" {
		if terminal(a.out) {
			return usage("a bundle is no text for a terminal; write --file FILE, or send the output elsewhere")
		}
		_, err := a.pack(ctx, a.out, name, stateDir)
		return err
	}
	file = cmp.Or(file, name+".tar.gz")
	// Whoever may read the parts need not be everybody; and nothing is overwritten.
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write bundle: %w; --file names another place", err)
	}
	p, err := a.pack(ctx, f, name, stateDir)
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(file)
		return err
	}
	fmt.Fprintf(a.out, "%s: %d files", file, len(p.files))
	if len(p.missing) > 0 {
		fmt.Fprintf(a.out, "; missing, as MANIFEST in it says: %s", strings.Join(p.missingNames(), ", "))
	}
	fmt.Fprintln(a.out)
	return nil
}

// packing is a bundle in the making.
type packing struct {
	app     *app
	tar     *tar.Writer
	folder  string
	now     time.Time
	files   []string    // as MANIFEST lists them
	missing [][2]string // what, and why
	secrets []string
	scrub   *strings.Replacer // of all that is packed
}

func (p *packing) missingNames() (names []string) {
	for _, m := range p.missing {
		names = append(names, m[0])
	}
	return names
}

// pack writes the archive. The error is one of writing; what cannot be had is missing.
func (a *app) pack(ctx context.Context, out io.Writer, folder, stateDir string) (*packing, error) {
	zip := gzip.NewWriter(out)
	p := &packing{app: a, tar: tar.NewWriter(zip), folder: folder, now: time.Now()}
	var shown []config.Shown
	found := a.bundleFiles()
	for _, path := range found.paths {
		files, secrets := config.Show(path, a.options(false))
		shown = append(shown, files...)
		p.secrets = append(p.secrets, secrets...)
	}
	p.scrub = scrubber(p.secrets)
	err := errors.Join(
		p.addVersions(ctx, found),
		p.addConfigurations(shown, found),
		p.addHistory(found, stateDir),
		p.addRole(ctx, roleAgent, found.agentListen),
		p.addRole(ctx, roleRegistrar, found.registrarListen),
		p.addHAProxy(ctx, found),
		p.addKernel(),
		p.addManifest(),
		p.tar.Close(), zip.Close())
	if err != nil {
		return nil, fmt.Errorf("write bundle: %w", err)
	}
	return p, nil
}

// scrubber replaces known secrets, the longest first.
func scrubber(secrets []string) *strings.Replacer {
	slices.SortFunc(secrets, func(a, b string) int { return cmp.Or(len(b)-len(a), strings.Compare(a, b)) })
	var pairs []string
	for _, s := range slices.Compact(secrets) {
		pairs = append(pairs, s, config.Removed)
	}
	return strings.NewReplacer(pairs...)
}

// add packs a file.
func (p *packing) add(name string, data []byte) error {
	data = []byte(p.scrub.Replace(config.RedactAddresses(string(data))))
	p.files = append(p.files, fmt.Sprintf("%-36s %9d bytes", name, len(data)))
	h := &tar.Header{Name: p.folder + "/" + name, Mode: 0o600, Size: int64(len(data)), ModTime: p.now, Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err := p.tar.Write(data)
	return err
}

// lack notes what is missing.
func (p *packing) lack(what string, why error) error {
	p.missing = append(p.missing, [2]string{what, p.scrub.Replace(config.RedactAddresses(strings.Join(strings.Fields(why.Error()), " ")))})
	return nil
}

// bundled is what the configuration of this host says of what to pack.
type bundled struct {
	paths                        []string // of main files
	problems                     map[string]error
	agent                        *config.Agent // nil: there is none, or it cannot be read
	dirs                         []string      // of histories
	agentListen, registrarListen string
	binary                       string
}

// bundleFiles finds the configuration of this host. What is wrong with it is no error: then the usual places are looked
// at.
func (a *app) bundleFiles() bundled {
	b := bundled{problems: map[string]error{}, agentListen: config.DefaultAdminListen, registrarListen: config.DefaultRegistrarListen, binary: "haproxy"}
	if a.configFile != "" {
		b.paths = []string{a.configFile}
	} else {
		for _, name := range []string{"agent.toml", "agent.json", "registrar.toml", "registrar.json"} {
			path := filepath.Join("/etc/myelin", name)
			if _, err := os.Stat(path); err == nil {
				b.paths = append(b.paths, path)
			}
		}
	}
	for i := 0; i < len(b.paths); i++ { // an agent's file may name one more
		b.read(a, b.paths[i])
	}
	if len(b.dirs) == 0 {
		b.dirs = []string{journalDir(config.DefaultStateDir)}
	}
	return b
}

func (b *bundled) read(a *app, path string) {
	kind, err := config.Detect(path, a.options(false))
	switch {
	case err != nil:
	case kind == config.KindRegistrar:
		stateDir := ""
		if b.agent != nil {
			stateDir = b.agent.StateDir
		}
		var c *config.Registrar
		if c, err = a.readRegistrar(path, stateDir); err == nil {
			b.dirs, b.registrarListen = append(b.dirs, journalDir(c.StateDir)), c.Admin.Listen
		}
	default:
		var c *config.Agent
		if c, _, err = config.LoadAgent(path, a.options(false)); err == nil {
			b.agent, b.agentListen, b.binary = c, c.Admin.Listen, cmp.Or(c.HAProxy.Binary, b.binary)
			b.dirs = append(b.dirs, journalDir(c.StateDir))
			if c.Registrar != "" && !slices.Contains(b.paths, c.Registrar) {
				b.paths = append(b.paths, c.Registrar)
			}
		}
	}
	if err != nil {
		b.problems[path] = err
	}
}

// addVersions says what runs here.
func (p *packing) addVersions(ctx context.Context, b bundled) error {
	var text strings.Builder
	fmt.Fprintf(&text, "myelin %s, built with %s for %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, file := range []string{"/proc/version", "/etc/os-release"} {
		if data, err := readSome(file); err == nil {
			fmt.Fprintf(&text, "\n%s:\n%s", file, data)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, bundlePatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.binary, "-vv").CombinedOutput()
	if err != nil {
		_ = p.lack("the version of HAProxy's binary", err)
	} else {
		fmt.Fprintf(&text, "\n%s -vv:\n%s", b.binary, out)
	}
	return p.add("versions.txt", []byte(text.String()))
}

// addConfigurations packs the files without secrets.
func (p *packing) addConfigurations(shown []config.Shown, b bundled) error {
	if len(shown) == 0 {
		return p.lack("configuration", errors.New("no -c FILE is given, and there is none in /etc/myelin"))
	}
	taken := map[string]int{}
	for _, s := range shown {
		if s.Err != nil {
			_ = p.lack("configuration "+s.Name, s.Err)
			continue
		}
		name := filepath.Base(s.Name)
		if taken[name]++; taken[name] > 1 {
			name = fmt.Sprintf("%d-%s", taken[name], name)
		}
		if err := p.add("config/"+name+".shown.json", s.Text); err != nil {
			return err
		}
	}
	for path, err := range b.problems {
		_ = p.lack("what follows from "+path, err)
	}
	return nil
}

// addHistory packs the segments as they are.
func (p *packing) addHistory(b bundled, stateDir string) error {
	dirs := slices.Compact(slices.Sorted(slices.Values(b.dirs)))
	if stateDir != "" {
		dirs = []string{journalDir(stateDir)}
	}
	for i, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			_ = p.lack("history", err)
			continue
		}
		packed := 0
		for _, e := range entries {
			if !e.Type().IsRegular() || filepath.Ext(e.Name()) != ".jsonl" {
				continue
			}
			data, err := readSome(filepath.Join(dir, e.Name()))
			if err != nil {
				_ = p.lack("history "+e.Name(), err)
				continue
			}
			packed++
			folder := "journal"
			if i > 0 {
				folder = fmt.Sprintf("journal-%d", i+1)
			}
			if err := p.add(folder+"/"+e.Name(), data); err != nil {
				return err
			}
		}
		if packed == 0 {
			_ = p.lack("history", fmt.Errorf("%s has none", dir))
		}
	}
	return nil
}

// addRole packs what a role that runs says of itself.
func (p *packing) addRole(ctx context.Context, role, listen string) error {
	for file, path := range map[string]string{"status.json": "/api/v1/status", "metrics.txt": "/metrics"} {
		data, err := fetch(ctx, listen, path)
		if err != nil {
			_ = p.lack(role+" "+file, err)
			continue
		}
		if err := p.add(role+"-"+file, data); err != nil {
			return err
		}
	}
	return nil
}

func fetch(ctx context.Context, listen, path string) ([]byte, error) {
	if listen == "" {
		return nil, errors.New("admin.listen is off")
	}
	ctx, cancel := context.WithTimeout(ctx, bundlePatience)
	defer cancel()
	data, err := page(ctx, listen, path, bundleMost)
	if err != nil {
		return nil, fmt.Errorf("ask http://%s%s: %w", listen, path, err)
	}
	return data, nil
}

// addHAProxy packs haproxy.cfg without secrets, and what HAProxy says of itself.
func (p *packing) addHAProxy(ctx context.Context, b bundled) error {
	if b.agent == nil {
		return p.lack("haproxy.cfg and show info", errors.New("no agent's file says where they are"))
	}
	h := b.agent.HAProxy
	data, err := readSome(h.ConfigFilePath)
	switch {
	case h.ConfigFilePath == "":
		_ = p.lack("haproxy.cfg", errors.New("the agent's file names none"))
	case err != nil:
		_ = p.lack("haproxy.cfg", err)
	default:
		lines := strings.Split(string(data), "\n")
		for i := range lines {
			lines[i] = config.RedactLine(lines[i])
		}
		if err := p.add("haproxy.cfg", []byte(strings.Join(lines, "\n"))); err != nil {
			return err
		}
	}
	for i, socket := range h.SocketFilePaths {
		info, err := showInfo(ctx, socket)
		if err != nil {
			_ = p.lack("show info of "+socket, err)
			continue
		}
		name := "haproxy-info.txt"
		if i > 0 {
			name = fmt.Sprintf("haproxy-info-%d.txt", i+1)
		}
		if err := p.add(name, []byte(info)); err != nil {
			return err
		}
	}
	return nil
}

func showInfo(ctx context.Context, socket string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bundlePatience)
	defer cancel()
	c, err := haproxy.Dial(ctx, socket, haproxy.ClientOptions{Timeout: bundlePatience, ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Exec(ctx, "show info")
}

// kernelFiles are the settings that matter to a proxy, below /proc/sys.
func kernelFiles() []string {
	return []string{
		"net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports", "net/ipv4/tcp_tw_reuse", "net/ipv4/tcp_fin_timeout",
		"net/ipv4/tcp_max_syn_backlog", "net/ipv4/tcp_max_tw_buckets", "net/ipv4/tcp_syncookies", "net/ipv4/tcp_timestamps",
		"net/core/somaxconn", "net/core/netdev_max_backlog", "fs/file-max", "fs/file-nr", "fs/nr_open",
		"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count", "kernel/pid_max", "vm/overcommit_memory",
	}
}

// addKernel packs the kernel's settings.
func (p *packing) addKernel() error {
	var text strings.Builder
	for _, name := range kernelFiles() {
		value, err := readSome(filepath.Join("/proc/sys", name))
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // a kernel without it is not worth a line
				_ = p.lack("sysctl "+name, err)
			}
			continue
		}
		fmt.Fprintf(&text, "%s = %s\n", strings.ReplaceAll(name, "/", "."), strings.Join(strings.Fields(string(value)), " "))
	}
	for _, file := range []string{"/proc/loadavg", "/proc/meminfo", "/proc/net/sockstat"} {
		if data, err := readSome(file); err == nil {
			fmt.Fprintf(&text, "\n%s:\n%s", file, data)
		}
	}
	return p.add("kernel.txt", []byte(text.String()))
}

// addManifest says what is in the bundle, and what is not.
func (p *packing) addManifest() error {
	var text strings.Builder
	fmt.Fprintf(&text, "myelin bundle of %s\n\n", p.now.UTC().Format(time.RFC3339))
	for _, f := range p.files {
		fmt.Fprintln(&text, f)
	}
	if len(p.missing) > 0 {
		fmt.Fprintln(&text, "\nmissing:")
	}
	for _, m := range p.missing {
		fmt.Fprintf(&text, "%s: %s\n", m[0], m[1])
	}
	fmt.Fprintf(&text, "\n%s stands where something was that may be a secret. Files of keys and credentials were not read.\n", config.Removed)
	return p.add("MANIFEST", []byte(text.String()))
}

// readSome reads a file, or the beginning of a very large one.
func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, bundleMost))
}
