// The model "add": the first guest's whole run for any two operands, step for step as recorded.
//
// An interpreter of exactly the instructions that guest has, in 16-bit real mode. It reads the
// machine code in the template's listing, puts the operands in, and runs. That it equals the
// recording is held by a test on the Python side.
(() => {
  "use strict";
  const vmView = globalThis.vmView;
  const GUEST = "guest kernel", KERNEL = "host kernel", VMM = "host user";
  const CF = 1, PF = 4, AF = 16, ZF = 64, SF = 128, IF = 512, OF = 2048;
  const LIMIT = 2000, START_SP = 0x0f00;

  const hex = (value, digits) => `0x${value.toString(16).padStart(digits, "0")}`;
  const even = (value) => {
    let bits = 0;
    for (let v = value & 255; v; v &= v - 1) bits++;
    return bits % 2 === 0;
  };

  // ---- the processor -----------------------------------------------------------------------

  class Cpu {
    constructor(memory, registers) {
      this.memory = memory;
      this.r = registers; // name → number, IP and FLAGS among them
    }

    byte(at) { return this.memory.get(at & 0xffff) || 0; }
    low(value) { this.r.AX = (this.r.AX & 0xff00) | (value & 255); }
    set(mask, value) { this.r.FLAGS = (this.r.FLAGS & ~mask) | value; }

    push(value) {
      this.r.SP = (this.r.SP - 2) & 0xffff;
      this.memory.set(this.r.SP, value & 255);
      this.memory.set(this.r.SP + 1, (value >> 8) & 255);
    }

    pop() {
      const value = this.byte(this.r.SP) | (this.byte(this.r.SP + 1) << 8);
      this.r.SP = (this.r.SP + 2) & 0xffff;
      return value;
    }

    // The flags of an 8-bit result; `more` adds those that carry and overflow decide.
    flags(result, more) {
      const value = result & 255;
      this.set(CF | PF | AF | ZF | SF | OF, more | (value ? 0 : ZF) | (value & 128 ? SF : 0) |
        (even(value) ? PF : 0));
      return value;
    }

    add(a, b) {
      const sum = a + b;
      return this.flags(sum, (sum > 255 ? CF : 0) | ((a ^ b ^ sum) & 16 ? AF : 0) |
        ((a ^ sum) & (b ^ sum) & 128 ? OF : 0));
    }

    compare(a, b) {
      const rest = a - b;
      this.flags(rest, (rest < 0 ? CF : 0) | ((a ^ b ^ rest) & 16 ? AF : 0) |
        ((a ^ b) & (a ^ rest) & 128 ? OF : 0));
    }

    // Execute one instruction; return null, or what makes it leave the guest.
    step() {
      const at = this.r.IP;
      const code = this.byte(at), next = this.byte(at + 1), al = this.r.AX & 255;
      const go = (length) => { this.r.IP = (at + length) & 0xffff; };
      const jump = (taken) => go(2 + (taken ? (next << 24) >> 24 : 0));
      if (code === 0xfa) { this.set(IF, 0); go(1); }
      else if (code === 0xb0) { this.low(next); go(2); }
      else if (code === 0x04) { this.low(this.add(al, next)); go(2); }
      else if (code === 0xba) { this.r.DX = next | (this.byte(at + 2) << 8); go(3); }
      else if (code === 0x6a) { this.push((next << 24) >> 24); go(2); }
      else if (code === 0xd4) {
        this.r.AX = (Math.floor(al / next) << 8) | this.flags(al % next, 0);
        go(2);
      } else if (code === 0x50) { this.push(this.r.AX); go(1); }
      else if (code === 0x88) { this.low(this.r.AX >> 8); go(2); }
      else if (code === 0x84) { this.flags(al, 0); go(2); }
      else if (code === 0x75) jump(!(this.r.FLAGS & ZF));
      else if (code === 0x58) { this.r.AX = this.pop(); go(1); }
      else if (code === 0xee) { go(1); return { port: this.r.DX, value: al }; }
      else if (code === 0x3c) { this.compare(al, next); go(2); }
      else if (code === 0xf4) { go(1); return { halt: true }; }
      else throw new Error(`the model has no instruction ${hex(code, 2)} at ${hex(at, 4)}`);
      return null;
    }
  }
  // ---- the recording -----------------------------------------------------------------------

  const BITS = { CF, PF, AF, ZF, SF, IF, OF };

  function show(registers, name) {
    if (name in BITS) return registers.FLAGS & BITS[name] ? "1" : "0";
    if (name in registers) return hex(registers[name], 4);
    throw new Error(`the model has no register ${name}`);
  }

  const showByte = (value) =>
    `${hex(value, 2)} '${value === 10 ? "⏎" : String.fromCharCode(value)}'`;

  // The listing with the operands put in: they are the last byte of `mov al` and of the first `add al`.
  function assemble(code, a, b) {
    const put = (index, value) => (line, i) => i !== index ? line
      : [line[0], line[1].slice(0, -2) + hex(value, 2).slice(2), line[2].replace(/\d+$/, value)];
    const starts = (byte) => code.findIndex((line) => line[1].startsWith(byte));
    return code.map(put(starts("b0"), a)).map(put(starts("04"), b));
  }

  // Sentences come from the template, so that they are written down in one place only.
  function phrases(steps) {
    const first = (event, reason) => steps.find((step) => step.event === event &&
      (!reason || step.state.exit.reason === reason));
    const lines = new Map();
    for (const step of steps) {
      const { code, line } = step.state;
      if (step.event === "instruction") lines.set(line, step.text.slice(code[line][2].length));
    }
    const io = first("exit", "IO").state.exit.detail;
    return {
      lines,
      run: () => first("run").text,
      entry: (ip) => first("entry").text.replace(show({ IP: parseInt(steps[0].state.code[0][0], 16) }, "IP"), ip),
      exit: (exit) => first("exit", exit.reason).text,
      back: (exit) => first("return", exit.reason).text.replace(io, exit.detail),
      device: (byte) => first("device").text.replace(/0x[0-9a-f]{2} '.'/u, byte),
    };
  }

  function run(template, { a, b }) {
    const say = phrases(template.steps);
    const initial = template.steps[0].state;
    const code = assemble(initial.code, a, b);
    const memory = new Map();
    const lineAt = new Map();
    code.forEach(([address, bytes], i) => {
      const at = parseInt(address, 16);
      lineAt.set(at, i);
      bytes.split(" ").forEach((byte, k) => memory.set(at + k, parseInt(byte, 16)));
    });
    const cpu = new Cpu(memory, { AX: 0, BX: 0, CX: 0, DX: 0, SI: 0, DI: 0, SP: START_SP, BP: 0,
      IP: parseInt(code[0][0], 16), FLAGS: 2 });
    const names = initial.registers.map(([name]) => name);
    const steps = [], counters = {};
    let line = -1, output = "", seen = null;
    const count = (name) => { counters[name] = (counters[name] || 0) + 1; };

    function note(where, event, text, crossing = null, exit = null) {
      const registers = names.map((name) => [name, show(cpu.r, name)]);
      const values = [...registers, ["output", output]];
      const changed = (seen || values).map(([name, old], i) => [name, old, values[i][1]])
        .filter(([, old, now]) => old !== now);
      seen = values;
      steps.push({ i: steps.length, where, event, text, changed,
        state: { crossing, registers, code, line, exit, output } });
    }
    const enter = () => {
      line = -1;
      note(KERNEL, "entry", say.entry(show(cpu.r, "IP")), [KERNEL, GUEST]);
    };

    note(VMM, "run", say.run());
    enter();
    while (steps.length < LIMIT) {
      line = lineAt.get(cpu.r.IP);
      const left = cpu.step();
      count("instructions");
      note(GUEST, "instruction", code[line][2] + say.lines.get(line));
      if (!left) continue;
      const exit = left.halt ? { reason: "HLT", detail: "" }
        : { reason: "IO", detail: `OUT 0x${left.port.toString(16)} ← ${showByte(left.value)}` };
      count("exits to user space");
      count(`exits ${exit.reason}`);
      note(KERNEL, "exit", say.exit(exit), [GUEST, KERNEL], exit);
      note(VMM, "return", say.back(exit), [KERNEL, VMM], exit);
      if (left.halt) break;
      output += String.fromCharCode(left.value);
      count("bytes on the serial port");
      note(VMM, "device", say.device(showByte(left.value)), [VMM, KERNEL], exit);
      enter();
    }
    const provenance = { ...template.provenance, guest_sha256: null };
    const trace = { ...template, provenance, steps, counters };
    return { trace, answers: { output, exits: counters["exits to user space"] } };
  }

  const operand = { min: 0, max: 255 };
  vmView.models.add = { inputs: { a: operand, b: operand }, run };
})();
