package config

import "time"

// Agent is the agent's file, decoded, defaulted and checked: Synapse's schema plus what is new in Myelin.
type Agent struct {
	Path string // the main file, as given

	ZooKeeper ZooKeeper
	Services  []Service // in file order, then those of service_conf_dir in order of file name
	HAProxy   HAProxy

	FileOutput    *FileOutput
	StateDir      string // where HAProxy's own files and the snapshots live
	Admin         Admin
	ControlSocket ControlSocket // where the agent takes orders
	Log           Log
	History       History
	OverridesPath string // path in ZooKeeper; default /myelin/overrides; empty: overrides are not honoured
	ConsumersPath string // path in ZooKeeper where agents say what they read; empty: nowhere
	Registrar     string // the registrar's file, when this process has that role too; empty: it has not
	Statsd        *Statsd
	Strict        bool // unknown keys are errors
}

// Service is one entry of the agent's services.
type Service struct {
	Name string
	File string // the file that defines it
	Line int    // the line where it begins

	Discovery           Discovery
	DefaultServers      []DefaultServer
	KeepDefaultServers  bool
	UsePreviousBackends bool   // default true
	BackendPortOverride uint16 // 0: none
	LeaderElection      bool
	LoadTestConcurrency int

	Guard        Guard
	Zone         *Zone
	Subset       *Subset
	DrainTimeout time.Duration // a leaving server drains for so long before it is put into maintenance; 0: not at all

	HAProxy            ServiceHAProxy
	FileOutputDisabled bool
}

// Discovery says where a service's instances are found.
type Discovery struct {
	Method string // zookeeper, zookeeper_poll, base, file, dns, multi, consul

	ZooKeeper           ZooKeeper // already merged with the file's defaults
	Path                string    // znode for the ZooKeeper methods, file for file
	Decode              Decode
	GeneratorConfigPath string        // default: Path; "disabled" turns it off
	DiscoveryJitter     time.Duration // least time between two reads, 0..120 s
	PollingInterval     time.Duration // zookeeper_poll; default 60 s
	RetryPolicy         RetryPolicy
	LabelFilters        []LabelFilter
	ImmutableNodes      bool // nobody sets the data of a registration's node

	Servers       []DNSServer // dns
	Nameserver    string      // dns
	CheckInterval time.Duration

	Watchers []NamedDiscovery // multi, in file order
	Resolver Resolver         // multi
}

// Decode says how a registration is read.
type Decode struct {
	Method       string // nerve (default), serverset, curator, auto
	EndpointName string
}

// RetryPolicy is Synapse's; Myelin's own back-off replaces it.
type RetryPolicy struct {
	MaxAttempts                         int
	MaxDelay, BaseInterval, MaxInterval time.Duration
}

// LabelFilter keeps instances by one label. Comparison is type-strict, as in Synapse: Value is a string, a
// json.Number, a bool or nil.
type LabelFilter struct {
	Label     string
	Value     any
	Condition string // equals, not-equals
}

// NamedDiscovery is one watcher of a multi discovery.
type NamedDiscovery struct {
	Name string
	Discovery
}

// Resolver says how a multi discovery combines its watchers.
type Resolver struct {
	Method          string // union, sequential
	SequentialOrder []string
}

// DNSServer is one name that a dns discovery resolves.
type DNSServer struct {
	Host   string
	Port   uint16
	Name   string
	Labels map[string]any
}

// DefaultServer is a static server of the file.
type DefaultServer struct {
	Name          string
	Host          string
	Port          uint16
	Weight        *int
	ServerOptions string // haproxy_server_options
	HAProxyID     int    // haproxy_server_id; 0: chosen by Myelin
	Labels        map[string]any
	ID            *int64 // sequence id, for leader election
}

// Guard bounds what the registry may take away at once. The zero value is a guard that is off.
type Guard struct {
	Enabled        bool          // default true
	MinBackends    int           // a silent loss that leaves fewer instances is held; default 0
	MaxDropPercent int           // 0..100: so is one of more than this part of them within a minute; default 50
	HoldFor        time.Duration // what is held is let go after this; 0: not for that; default 1h
}

// Zone prefers instances near by.
type Zone struct {
	Label, Local string
	SpillOver    bool
}

// Subset limits how many instances a node uses.
type Subset struct{ Size int }

// ServiceHAProxy is services.<name>.haproxy.
type ServiceHAProxy struct {
	Disabled bool

	// Port is the frontend's port. PortSet false: no frontend (unless BindOnly). BindOnly: the key was given as
	// null, so bind_address stands alone (a unix socket).
	Port     uint16
	PortSet  bool
	BindOnly bool

	BindAddress     string // empty: the top-level one
	BindOptions     string
	ServerOptions   string
	Frontend        []string
	Backend         []string
	Listen          []string
	BackendName     string // empty: the service's name
	BackendOrder    string // "", asc, desc, no_shuffle, shuffle
	SharedFrontend  []string
	CookieValueHash bool // cookie_value_method = "hash"
	HealthGate      bool // a new server takes traffic after HAProxy's first good check; default: the top-level one
}

// HAProxy is the top-level haproxy section.
type HAProxy struct {
	Present bool // the key is in the file

	Global        []string  // nil: the built-in lines
	Defaults      []string  // nil: the built-in lines
	ExtraSections []Section // in file order

	Run    bool   // Myelin starts HAProxy itself; default when neither a socket nor a reload command is given
	Binary string // default "haproxy"

	DoWrites, DoSocket, DoReloads bool // default true
	DoChecks                      bool // default false
	NoChecks                      bool // do_checks = false was given: nothing is checked, not even what is new

	ConfigFilePath          string   // default when Run: <state_dir>/haproxy.cfg
	CandidateConfigFilePath string   // default ConfigFilePath + ".tmp"
	SocketFilePaths         []string // never empty when Run: default <state_dir>/haproxy.sock
	MasterSocketPaths       []string // of a HAProxy that others run: none, or one for each of SocketFilePaths
	ReloadCommand           string
	CheckCommand            string

	BindAddress    string // default 127.0.0.1
	SharedFrontend []string
	FrontendNames  string // "" (by HAProxy's version), same, distinct (from the names of backends)

	RestartInterval time.Duration // default 2s
	RestartJitter   float64       // fraction of the interval
	StateFilePath   string
	StateFileTTL    time.Duration
	ServerOrderSeed string // digits; Synapse's users give 128-bit numbers
	UseNerveWeights bool   // default true

	RegistryOptions []string // option words that registrations may use; default DefaultRegistryOptions
	MaxServers      int      // instances of a service that become servers, 1..1048575; default 20000

	HealthGate            bool          // default of the services' own
	DeleteAfter           time.Duration // of servers that left; 0: a minute, ten before HAProxy 3.0
	ShutdownSessionsAfter time.Duration // of servers that left and still have sessions; 0: never
	ManualChanges         time.Duration // what others set on the socket stays for so long; 0: it is corrected at once; default 1h
}

// Section is one hand-written section of haproxy.cfg.
type Section struct {
	Title string
	Lines []string
}

// FileOutput writes one JSON file a service.
type FileOutput struct{ OutputDirectory string }

// Admin is the read-only HTTP endpoint.
type Admin struct {
	Listen string // "host:port"; "off" when empty
	Given  bool   // the file names it: it must be free
}

// Log says how much is logged, and how.
type Log struct{ Level, Format string }

// History is what a process keeps of what happened, in StateDir.
type History struct {
	Off     bool
	MaxSize int64 // bytes; 0: the usual 16 MiB
}

// Statsd is a dogstatsd receiver.
type Statsd struct {
	Host       string
	Port       uint16
	SampleRate map[string]float64
}
