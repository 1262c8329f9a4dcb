package haproxy

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriterWritesOnlyWhatDiffers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "haproxy.cfg")
	w := NewWriter(path, "", nil)
	_, err := w.Read()
	require.ErrorIs(t, err, fs.ErrNotExist)

	changed, err := w.Write(t.Context(), []byte("one\n"))
	require.NoError(t, err)
	require.True(t, changed)
	require.Equal(t, "one\n", read(t, path))
	first, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, newFileMode, first.Mode())

	changed, err = w.Write(t.Context(), []byte("one\n"))
	require.NoError(t, err)
	require.False(t, changed)
	second, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(first, second), "equal text is not written")

	require.NoError(t, os.WriteFile(path, []byte("edited by hand\n"), 0o640))
	changed, err = w.Write(t.Context(), []byte("one\n"))
	require.NoError(t, err)
	require.True(t, changed, "what is on disk counts, not what was written last")
	got, err := w.Read()
	require.NoError(t, err)
	require.Equal(t, "one\n", string(got))
	require.Equal(t, []string{"haproxy.cfg"}, names(t, dir))
}

func TestWriterKeepsModeOwnerAndLink(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target.cfg"), filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(target, []byte("old"), 0o600))
	require.NoError(t, os.Chmod(target, 0o664))
	uid := os.Getuid()
	if uid == 0 {
		uid = 12345
		require.NoError(t, os.Chown(target, uid, 54321))
	}
	require.NoError(t, os.Symlink(target, link))

	_, err := NewWriter(link, "", nil).Write(t.Context(), []byte("new"))
	require.NoError(t, err)
	require.Equal(t, "new", read(t, target))
	info, err := os.Lstat(link)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSymlink, info.Mode().Type())
	info, err = os.Stat(target)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o664), info.Mode().Perm())
	require.EqualValues(t, uid, info.Sys().(*syscall.Stat_t).Uid)
}

func TestWriterLetsTheCheckDecide(t *testing.T) {
	dir := t.TempDir()
	path, candidate := filepath.Join(dir, "haproxy.cfg"), filepath.Join(dir, "new", "candidate.cfg")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "new"), 0o700))
	require.NoError(t, os.WriteFile(path, []byte("good"), 0o600))
	bad := errors.New("line 1 is no good")
	var seen string
	w := NewWriter(path, candidate, func(_ context.Context, path string) error {
		require.Equal(t, candidate, path)
		if seen = read(t, path); seen == "bad" {
			return bad
		}
		return nil
	})

	changed, err := w.Write(t.Context(), []byte("bad"))
	require.ErrorIs(t, err, bad)
	require.ErrorContains(t, err, "write HAProxy's file "+path+", which stays as it was")
	require.False(t, changed)
	require.Equal(t, "good", read(t, path))
	require.NoFileExists(t, candidate)

	_, err = w.Write(t.Context(), []byte("good"))
	require.NoError(t, err)
	require.Equal(t, "bad", seen, "what is in force is not checked again")

	require.NoError(t, os.Symlink(path, candidate), "a link somebody left there is not written through")
	changed, err = w.Write(t.Context(), []byte("better"))
	require.NoError(t, err)
	require.True(t, changed)
	require.Equal(t, "better", read(t, path))
	require.NoFileExists(t, candidate)
}

func TestWriterFaults(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	for name, c := range map[string]struct{ path, candidate, want string }{
		"no directory":              {filepath.Join(dir, "none", "haproxy.cfg"), "", "create the directory " + filepath.Join(dir, "none")},
		"a file as directory":       {filepath.Join(path, "haproxy.cfg"), "", "create the directory " + path},
		"candidate elsewhere":       {path, filepath.Join(dir, "none", "x"), "create the directory " + filepath.Join(dir, "none")},
		"candidate is a device":     {path, os.DevNull, "is not a file"},
		"candidate is a folder":     {path, dir, "is not a file"},
		"the file itself is folder": {dir, filepath.Join(dir, "x"), "rename"},
	} {
		t.Run(name, func(t *testing.T) {
			changed, err := NewWriter(c.path, c.candidate, nil).Write(t.Context(), []byte("new"))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "write HAProxy's file "+c.path)
			require.False(t, changed)
			require.Equal(t, "old", read(t, path))
			require.Equal(t, []string{"haproxy.cfg"}, names(t, dir))
		})
	}
	info, err := os.Stat(os.DevNull)
	require.NoError(t, err)
	require.False(t, info.Mode().IsRegular())
}

// A file that cannot be written whole, as on a full disk, leaves the old one. The limit on the size of files belongs
// to a process, so this test runs itself again under one.
func TestWriterOnAFullDisk(t *testing.T) {
	if dir := os.Getenv("MYELIN_TEST_FULL_DISK"); dir != "" {
		changed, err := NewWriter(filepath.Join(dir, "haproxy.cfg"), "", nil).Write(t.Context(), make([]byte, 1<<20))
		require.ErrorIs(t, err, syscall.EFBIG)
		require.False(t, changed)
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("sh", "-c", `ulimit -f 8 && exec "$0" -test.run='^TestWriterOnAFullDisk$' -test.v`, self)
	cmd.Env = append(os.Environ(), "MYELIN_TEST_FULL_DISK="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestWriterOnAFullDisk")
	require.Equal(t, "old", read(t, path))
	require.Equal(t, []string{"haproxy.cfg"}, names(t, dir))
}

func TestAdviceNamesTheRemedy(t *testing.T) {
	for err, want := range map[error]string{
		syscall.ENOSPC: "make room on the file system of /etc/haproxy",
		syscall.EDQUOT: "make room on the file system of /etc/haproxy",
		syscall.EACCES: "write to /etc/haproxy",
		syscall.EROFS:  "write to /etc/haproxy",
		syscall.EXDEV:  "candidate_config_file_path on the file system of",
	} {
		got := advise(&fs.PathError{Op: "write", Path: "/etc/haproxy/x.tmp", Err: err}, "/etc/haproxy/x.tmp")
		require.ErrorIs(t, got, err)
		require.ErrorContains(t, got, want)
	}
	other := errors.New("else")
	require.Equal(t, other, advise(other, "/x"))
}

func TestCheckWithHAProxy(t *testing.T) {
	check := CheckWith(haproxytest.Require(t), time.Minute)
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	require.NoError(t, os.WriteFile(path, []byte("defaults\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n"+
		"frontend f\n\tbind 127.0.0.1:1\n"), 0o600))
	require.NoError(t, check(t.Context(), path))

	require.NoError(t, os.WriteFile(path, []byte("defaults\n\tfrobnicate\n"), 0o600))
	err := check(t.Context(), path)
	require.ErrorContains(t, err, "unknown keyword 'frobnicate'")
	require.ErrorContains(t, err, path+":2")
	require.NotContains(t, err.Error(), "NOTICE", "only what is wrong is said")
	require.Equal(t, err.Error(), check(t.Context(), path).Error(), "said alike each time")

	require.ErrorContains(t, CheckWith("/no/such/haproxy", time.Minute)(t.Context(), path), "/no/such/haproxy")
}

func TestCommands(t *testing.T) {
	ctx := t.Context()
	require.NoError(t, CheckCommand("true", time.Minute)(ctx, "ignored"))
	err := CheckCommand("echo it is; echo bad >&2; exit 3", time.Minute)(ctx, "ignored")
	require.EqualError(t, err, "run check_command: exit status 3: it is; bad")
	err = ReloadCommand("no-such-command-at-all", time.Minute)(ctx)
	require.ErrorContains(t, err, "run reload_command: exit status 127: ")
	require.ErrorContains(t, err, "no-such-command-at-all")
}

func TestAHangingCommandIsKilledWithItsChildren(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	err := ReloadCommand("echo begun; sleep 3600 & echo $! >"+pidFile+"; wait", 200*time.Millisecond)(t.Context())
	require.EqualError(t, err, "run reload_command: no end in the time it has; killed: begun")
	pid := pidIn(t, pidFile)
	require.Eventually(t, func() bool { return !living(pid) }, time.Minute, 5*time.Millisecond)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, ReloadCommand("sleep 3600", time.Hour)(ctx), context.Canceled)
}

// A reload command may leave a daemon behind that keeps its output open, as "haproxy -D -sf ..." does.
func TestACommandsDaemonIsNotWaitedFor(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	require.NoError(t, ReloadCommand("setsid sleep 3600 & echo $! >"+pidFile, time.Minute)(t.Context()))
	pid := pidIn(t, pidFile)
	require.True(t, living(pid))
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

func TestMuchOutputIsCut(t *testing.T) {
	err := ReloadCommand("yes 0123456789 | head -c 10000000; echo end; exit 1", time.Minute)(t.Context())
	require.ErrorContains(t, err, "exit status 1: 0123456789; ")
	require.Less(t, len(err.Error()), 1000)
}
