package wire

// Connected is the first byte that the agent's program writes for "dial PORT". It
// reports that the connection is established.
const Connected = '+'
