package tracing

// Phases are the steps of every start, save and command. The metrics have histograms of
// the spans with these names.
const (
	// StartQueue is the wait for a slot: only so many sessions start at once.
	StartQueue = "start.queue"
	// StartClaim gives a session a warm machine. It contains StartNetwork and StartAgent,
	// and replaces StartSource and StartMachine.
	StartClaim = "start.claim"
	// StartNetwork takes a lease and sets its policy. StartSource gets the image or
	// snapshot. StartMachine makes the driver start the machine. StartAgent waits for
	// the guest agent and sets up the sandbox.
	StartNetwork = "start.network"
	StartSource  = "start.source"
	StartMachine = "start.machine"
	StartAgent   = "start.agent"
	// StartFetch runs a command in the sandbox that fetches the source.
	StartFetch = "start.fetch"

	// MachineGroup creates a machine's control group and files, MachineKernel starts its
	// kernel, and MachineBoot makes the kernel boot the sandbox.
	MachineGroup  = "machine.group"
	MachineKernel = "machine.kernel"
	MachineBoot   = "machine.boot"

	// AgentExec makes the guest agent start a command; AgentWrite and AgentRead transfer
	// files.
	AgentExec  = "agent.exec"
	AgentWrite = "agent.write"
	AgentRead  = "agent.read"

	// SaveMachine makes the machine's kernel write its state, SaveStore stores it.
	SaveMachine = "save.machine"
	SaveStore   = "save.store"

	// StoreRead and StoreWrite are queries and transactions of the database.
	StoreRead  = "store.read"
	StoreWrite = "store.write"
)

// Phases are the names of all phases.
var Phases = []string{
	StartQueue, StartClaim, StartNetwork, StartSource, StartMachine, StartAgent, StartFetch,
	MachineGroup, MachineKernel, MachineBoot, AgentExec, AgentWrite, AgentRead,
	SaveMachine, SaveStore, StoreRead, StoreWrite,
}
