/** Post-copy migration: a running guest goes to another process, and its memory follows. */
export { parseAddress } from './address.ts';
export { type ArrivingGuest, type ReceivedGuest, type ReceiveOptions, receiveGuest } from './receive.ts';
export { type SendOptions, type SendReport, sendGuest } from './send.ts';
