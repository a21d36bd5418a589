package wire

// KnockSize is the length of the nonce for a new connection over the pipes of an agent.
// The host writes the nonce to the door, and the agent sends it as the first bytes of
// the connection, before any frame.
const KnockSize = 16
