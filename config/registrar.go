package config

import "time"

// DefaultStateDir is state_dir of both files.
const DefaultStateDir = "/var/lib/myelin"

// Registrar is the registrar's file: Nerve's schema plus what is new in Myelin.
type Registrar struct {
	Path string

	InstanceID string
	ZooKeeper  ZooKeeper // defaults for services without zk_hosts
	Services   []Registration

	HeartbeatPath             string
	MaxRepeatedReportFailures int
	Statsd                    *Statsd
	StateDir                  string // where the ids of its sessions are kept
	ControlSocket             ControlSocket
	StopTimeout               time.Duration // for a command that the registrar runs; 0: no limit
	Admin                     Admin
	Log                       Log
	History                   History
	NerveCompatible           bool
	ACL                       string // default of the services: creator, or empty for open
	MaxConcurrentChecks       int    // 0: the registrar's default
	Strict                    bool
}

// ControlSocket is the unix socket that an agent or a registrar takes orders at.
type ControlSocket struct {
	Path  string // empty: there is none
	Given bool   // the file names it: a registrar without it is not what was asked for
}

// Registration is one service that the registrar looks after.
type Registration struct {
	Name string
	File string
	Line int

	Host          string
	Port          uint16
	PortText      bool // the port was given as a string and is published as one (Nerve keeps its type)
	ZooKeeper     ZooKeeper
	ZKPath        string
	CheckInterval time.Duration // default 0.5 s, as in Nerve
	Checks        []Check
	CheckMocked   bool
	Combine       string   // any, weighted; empty: all
	Damping       *Damping // nil: none

	Weight        *int
	ServerOptions *string        // haproxy_server_options; nil: absent
	Labels        map[string]any // nil: absent

	UsePathEncoding     bool
	NodeType            string        // ephemeral_sequential (default), ephemeral, persistent, persistent_sequential
	TTL                 time.Duration // of persistent nodes; 0: none
	RateLimiting        *RateLimiting
	LoadTestConcurrency int
	Copy                int // number of this copy, from 0, where LoadTestConcurrency is not 0

	LeaveNotice time.Duration // default 500 ms; 0 with nerve_compatible or use_path_encoding
	Drain       time.Duration // default 5 s; 0 with nerve_compatible
	OnStop      []string      // a program and its arguments
	SlowStart   time.Duration // 0: none

	ACL     string   // creator, or empty for open
	Payload []string // default ["nerve"]; the first one is registered at ZKPath

	PayloadPaths map[string]string // where each further format is registered; nil: there is none
}

// Damping holds back a service that goes up and down too often.
type Damping struct {
	Suppress, Reuse   float64 // above 0; Reuse is below Suppress
	HalfLife, MaxHold time.Duration
}

// RateLimiting is Nerve's limit on changes of state.
type RateLimiting struct {
	AverageRate, MaxBurst float64 // 0: no limit
	ShadowMode            bool    // default true
}

// Check is one health check of a registration.
type Check struct {
	Type     string // http (https too), tcp, grpc, exec, redis, mysql, postgres, amqp, zookeeper, ttl, noop
	Name     string
	Host     string        // default: the registration's
	Port     uint16        // default: the registration's
	Timeout  time.Duration // default 100 ms; for http the default of ReadTimeout, as in Nerve
	Rise     int
	Fall     int
	Interval time.Duration // 0: the registration's check_interval
	Share    *int          // of the weight, 0: only shown; nil: 1

	// http, tcp, grpc, redis, mysql, postgres; TLS also of amqp and zookeeper
	Socket string // a Unix socket instead of Host and Port; empty: none
	SSL    bool
	TLS    *TLS // with SSL

	// http (https is http with SSL)
	URI         string
	Method      string // empty: GET
	Body        string
	Status      []StatusRange // none: 200 to 399
	OpenTimeout time.Duration
	ReadTimeout time.Duration
	SSLTimeout  time.Duration
	Headers     map[string]string
	Expect      string // also of tcp
	ExpectRegex string

	Send    string // tcp
	Service string // grpc; empty: the server as a whole

	// exec
	Command []string
	Shell   bool // Command is one text for a shell
	Env     map[string]string

	WarnExit   int // exit status that means less traffic; 0: none
	WarnWeight int // percent of the weight then

	TTL time.Duration // ttl

	// redis, mysql, postgres, amqp
	Username     string
	Password     Secret
	PasswordFile string // holds the password, instead of Password; read again for each check
	Role         string // redis: master or replica
	Database     string // postgres
	VirtualHost  string // amqp
	Word         string // zookeeper: srvr or ruok
}

// StatusRange is a range of HTTP statuses. Both ends belong to it.
type StatusRange struct{ From, To int }
