// Package cli is the command line: one file a command; flags, output and exit codes.
package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// Exit codes. They are part of the interface.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2 // the command line or a configuration file is wrong
	exitFindings    = 3 // plan: there is something to do
	exitUnconfirmed = 4 // drain, maint, weight, enable with --wait: stored, but not confirmed
)

// version is set by the linker.
var version = "unknown"

// app is what every command works with: the world, and the global flags.
type app struct {
	out, errs io.Writer
	env       func(string) (string, bool)
	args      []string // the command line, without the program

	configFile string
	zookeeper  string
	output     string
	timeout    time.Duration
	logLevel   string

	stops stops

	latest atomic.Pointer[zookeeper.Session] // the session that was opened last; nil: none

	collector sync.Once // around setting collected
	collected int       // how often the collector of garbage ran before answerFast, in percent; 0: it runs as it did
}

// codeError carries an exit code other than 1.
type codeError struct {
	code int
	err  error // nil: the command has said what there was to say
}

func (e *codeError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

func usage(format string, args ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, args...)}
}

// Main runs the command line and returns the exit code. Answers go to out, logs and errors to errs. SIGINT and
// SIGTERM end a command in order; a second one ends the process at once, unless the command has a better use for it.
func Main(args []string, out, errs io.Writer) int {
	a := &app{out: screenOf(out, os.LookupEnv), errs: errs, env: os.LookupEnv, args: args}
	ctx, stop := a.stops.catch()
	defer stop()
	defer a.collectAgain()
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return a.exit(err)
}

func (a *app) exit(err error) int {
	if err == nil {
		return exitDone
	}
	var problems config.Problems
	var coded *codeError
	switch {
	case errors.As(err, &problems):
		fmt.Fprintln(a.errs, problems.Error())
		return exitUsage
	case errors.As(err, &coded):
		if coded.err != nil {
			fmt.Fprintln(a.errs, "myelin:", coded.err)
		}
		return coded.code
	}
	fmt.Fprintln(a.errs, "myelin:", err)
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "myelin",
		Short:         "Keeps a local HAProxy in step with ZooKeeper, and healthy services in ZooKeeper",
		SilenceUsage:  true,
		SilenceErrors: true,

		SuggestionsMinimumDistance: 2,

		Args: cobra.ArbitraryArgs, // an unknown command is for RunE to refuse, with its exit code
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			hint := "see myelin --help"
			if near := c.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "did you mean " + strings.Join(near, " or ") + "?"
			}
			return usage("unknown command %q; %s", args[0], hint)
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.errs)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%w; see %s --help", err, c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.configFile, "config", "c", "", "configuration `FILE` (JSON or TOML)")
	f.StringVar(&a.zookeeper, "zookeeper", "", "ZooKeeper `HOSTS`, \"zk1:2181,zk2:2181/chroot\" (MYELIN_ZOOKEEPER)")
	f.StringVarP(&a.output, "output", "o", "table", "`FORMAT` of the answer: table, wide or json")
	f.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long a question may take")
	f.StringVar(&a.logLevel, "log-level", "", "debug, info, warn or error (default: the file's, else info)")
	words := func(words ...string) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	for flag, fixed := range map[string]cobra.CompletionFunc{
		"output":    words("table", "wide", "json"),
		"log-level": words("debug", "info", "warn", "error"),
		"zookeeper": cobra.NoFileCompletions,
		"timeout":   cobra.NoFileCompletions,
	} {
		cobra.CheckErr(root.RegisterFlagCompletionFunc(flag, fixed))
	}
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if a.output != "table" && a.output != "wide" && a.output != "json" {
			return usage("output %q: write table, wide or json", a.output)
		}
		if _, err := a.level(""); err != nil {
			return err
		}
		if a.zookeeper == "" {
			a.zookeeper, _ = a.env(zookeeperVariable)
		}
		return nil
	}
	for _, c := range []*cobra.Command{
		a.agentCommand(),
		a.registrarCommand(),
		a.checkCommand(),
		a.renderCommand(),
		a.planCommand(),
		a.servicesCommand(),
		a.instancesCommand(),
		a.watchCommand(),
		a.explainCommand(),
		a.statusCommand(),
		a.guardCommand(),
		a.historyCommand(),
		a.bundleCommand(),
		a.drainCommand(),
		a.maintCommand(),
		a.weightCommand(),
		a.enableCommand(),
		a.overridesCommand(),
		a.reportCommand(),
		a.manCommand(),
		a.doctorCommand(),
		a.fsckCommand(),
		a.gcCommand(),
		a.versionCommand(),
	} {
		if c.Args != nil {
			c.Args = usageArgs(c.Args)
		}
		a.complete(c)
		root.AddCommand(c)
	}
	return root
}

// usageArgs makes a wrong number of arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return usage("%w; see %s --help", err, c.CommandPath())
		}
		return nil
	}
}

// level is the log level in force: the flag's, else the file's, else info. DEBUG in the environment is Nerve's and
// Synapse's way to ask for more.
func (a *app) level(fromFile string) (logrus.Level, error) {
	name := a.logLevel
	if name == "" {
		name = fromFile
	}
	if name == "" {
		if _, debug := a.env("DEBUG"); debug {
			return logrus.DebugLevel, nil
		}
		return logrus.InfoLevel, nil
	}
	level, err := logrus.ParseLevel(strings.ToLower(name))
	if err != nil {
		return 0, usage("log level %q: write debug, info, warn or error", name)
	}
	return level, nil
}

// logger makes the process's logger.
func (a *app) logger(c config.Log) (*logrus.Logger, error) {
	level, err := a.level(c.Level)
	if err != nil {
		return nil, err
	}
	log := logrus.New()
	log.SetOutput(a.errs)
	log.SetLevel(level)
	if c.Format == "json" {
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339Nano})
	} else {
		log.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02T15:04:05.000Z07:00"})
	}
	return log, nil
}

// options are those of reading a file.
func (a *app) options(strict bool) config.Options {
	o := config.Options{LookupEnv: a.env, Strict: strict}
	if a.zookeeper != "" {
		o.ZooKeeperHosts = []string{a.zookeeper}
	}
	return o
}

// file returns the configuration file's path: the flag's, else the first of the named variables that is set.
func (a *app) file(variables ...string) (string, error) {
	if a.configFile != "" {
		return a.configFile, nil
	}
	for _, v := range variables {
		if p, ok := a.env(v); ok && p != "" {
			return p, nil
		}
	}
	return "", usage("which file? give it with -c FILE")
}

// warn prints a file's warnings.
func (a *app) warn(log logrus.FieldLogger, problems config.Problems) {
	for _, p := range problems {
		if p.Warning {
			log.Warn(p.String())
		}
	}
}
