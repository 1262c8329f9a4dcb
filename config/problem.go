package config

// Problem is one complaint about a file, with where and what to do.
type Problem struct {
	File    string
	Line    int    // 0: unknown
	Key     string // dotted, "services.user-api.discovery.path"; empty for the whole file
	Text    string // what is wrong
	Remedy  string // what to write
	Warning bool   // the file is usable all the same
}

// Problems are all complaints of one load, in order of file and line.
type Problems []Problem

// Options are the world of a load.
type Options struct {
	LookupEnv func(string) (string, bool) // nil: nothing expands but to its default
	Strict    bool                        // unknown keys are errors
}

// LoadAgent, LoadRegistrar, Detect: see load.go.
