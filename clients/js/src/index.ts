export { SidestreamSource, ErrorOfSource, type SourceEventMap, type SourceOptions } from "./source.js";
export { follow, type FollowOptions, type ReceivedEvent } from "./follow.js";
export { Refused, type Framing } from "./transport.js";
export { ControlEvent, type Close, type ControlData, type Gap, type Removed, type Renewal } from "./control.js";
export type { ConnectionOptions, State } from "./pump.js";
