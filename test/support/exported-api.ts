/** What the package exports, read from its sources: each name and each public member, and whether it has a docstring. */
import { readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseSync } from 'rolldown/utils';

// biome-ignore lint/suspicious/noExplicitAny: the nodes of an ESTree, which the parser's own types split by kind.
type Node = any;

/** An exported name, or a member by its path: `vmexit: Vm.createVcpu`. */
export interface Documented {
  readonly name: string;
  /** Where it stands, as `src/open.ts:12`. */
  readonly at: string;
  readonly doc: boolean;
  /** The docstring, without its examples. Empty where there is none. */
  readonly text: string;
}

interface Module {
  readonly path: string;
  readonly text: string;
  /** Docstrings, by where they end. */
  readonly docs: readonly { readonly end: number; readonly value: string }[];
  readonly body: readonly Node[];
}

interface Declared {
  readonly module: Module;
  readonly statement: Node;
  readonly node: Node;
}

/** The source of each TypeScript entry of package.json's exports, by the name that users import. */
export function entries(root: string): Map<string, string> {
  const { name, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const found = Object.entries(exports).flatMap(([path, conditions]) => {
    const source = typesOf(conditions)
      ?.replace(/^\.\/dist\//, 'src/')
      .replace(/\.d\.ts$/, '.ts');
    return source === undefined ? [] : [[name + path.slice(1), join(root, source)] as const];
  });
  return new Map(found);
}

/** The declarations of an entry, whichever conditions they are under. */
function typesOf(conditions: unknown): string | undefined {
  if (typeof conditions !== 'object' || conditions === null) return undefined;
  const { types, ...others } = conditions as Record<string, unknown>;
  return typeof types === 'string' ? types : Object.values(others).map(typesOf).find(Boolean);
}

/** All that is exported by a module, re-exports followed: a name that comes by two ways is given once. */
export function exported(root: string, path: string): Documented[] {
  const modules = new Map<string, Module>();
  const seen = new Set<Node>();
  return [...exportsOf(path)].flatMap(([name, found]) =>
    found.flatMap(({ module, statement, node }) => {
      if (seen.has(node)) return [];
      seen.add(node);
      return [...describe(name, module, statement, node)];
    }),
  );

  function load(file: string): Module {
    let module = modules.get(file);
    if (module === undefined) {
      const text = readFileSync(file, 'utf8');
      const { program, comments, errors } = parseSync(file, text);
      if (errors.length > 0) throw errors[0];
      const docs = comments.filter(
        ({ type, value }) => type === 'Block' && value.startsWith('*') && /\w/.test(value),
      );
      module = { path: file, text, docs, body: program.body };
      modules.set(file, module);
    }
    return module;
  }

  /** By name: two declarations where a constant and a type share it. */
  function exportsOf(file: string): Map<string, Declared[]> {
    const module = load(file);
    const names = new Map<string, Declared[]>();
    for (const statement of module.body) {
      if (statement.type === 'ExportAllDeclaration') {
        for (const [name, found] of exportsOf(resolve(dirname(file), statement.source.value)))
          names.set(name, found);
      } else if (statement.type === 'ExportNamedDeclaration' && statement.declaration !== null) {
        for (const node of statement.declaration.declarations ?? [statement.declaration])
          names.set(node.id.name, [...(names.get(node.id.name) ?? []), { module, statement, node }]);
      } else if (statement.type === 'ExportNamedDeclaration') {
        for (const { local, exported } of statement.specifiers)
          names.set(exported.name, named(module, statement.source?.value, local.name));
      }
    }
    return names;
  }

  /** What a name of another module is, or of this one, where it may be imported. */
  function named({ path, body }: Module, from: string | undefined, name: string): Declared[] {
    if (from !== undefined) return exportsOf(resolve(dirname(path), from)).get(name)!;
    const imported = body
      .filter(({ type }) => type === 'ImportDeclaration')
      .flatMap(({ source, specifiers }) => specifiers.map((one: Node) => ({ from: source.value, ...one })))
      .find(({ local }) => local.name === name);
    if (imported === undefined) throw new Error(`${path} exports ${name}, which is declared apart`);
    return exportsOf(resolve(dirname(path), imported.from)).get(imported.imported.name)!;
  }

  /** The docstring that ends right before the node. */
  function docOf(module: Module, node: Node): string {
    const doc = module.docs.find(
      ({ end }) => end <= node.start && module.text.slice(end, node.start).trim() === '',
    );
    return doc?.value.replace(/```[\s\S]*?```/g, '') ?? '';
  }

  function place(module: Module, node: Node): string {
    const line = module.text.slice(0, node.start).split('\n').length;
    return `${module.path.slice(root.length + 1)}:${line}`;
  }

  function* describe(name: string, module: Module, statement: Node, node: Node): Generator<Documented> {
    const text = docOf(module, statement);
    yield { name, at: place(module, statement), doc: text !== '', text };
    yield* members(name, module, node);
  }

  function* members(name: string, module: Module, node: Node): Generator<Documented> {
    for (const child of childrenOf(node)) {
      const key = keyOf(child);
      if (key === undefined) {
        yield* members(name, module, child);
        continue;
      }
      const text = docOf(module, child);
      const doc = text !== '' || siblings(child, node).some((other) => docOf(module, other) !== '');
      yield { name: `${name}.${key}`, at: place(module, child), doc, text };
      yield* members(`${name}.${key}`, module, child);
    }
    yield* inherited(name, module, node);
  }

  /** A class may be written in parts, each a class of a file of its own that is not exported. */
  function* inherited(name: string, module: Module, { superClass }: Node): Generator<Documented> {
    if (superClass?.type !== 'Identifier' || !isImported(module, superClass.name)) return;
    for (const part of named(module, undefined, superClass.name))
      for (const member of members(name, part.module, part.node))
        if (member.name !== `${name}.constructor`) yield member;
  }
}

const isImported = ({ body }: Module, name: string): boolean =>
  body.some(({ specifiers }) => specifiers?.some(({ local }: Node) => local?.name === name));

/** The other half of an accessor, and the other signatures of a function: one docstring serves all. */
const siblings = (node: Node, parent: Node): Node[] =>
  childrenOf(parent).filter(
    (other) => other !== node && keyOf(other) === keyOf(node) && keyOf(node) !== undefined,
  );

/** What is looked into: bodies of classes and interfaces, literal types, tables of constants. */
function childrenOf(node: Node): Node[] {
  switch (node?.type) {
    case 'ClassDeclaration':
    case 'TSInterfaceDeclaration':
      return node.body.body.filter(isPublic);
    case 'TSTypeAliasDeclaration':
    case 'TSPropertySignature':
    case 'PropertyDefinition':
    case 'TSTypeAnnotation':
    case 'TSMappedType':
      return node.typeAnnotation ? [node.typeAnnotation] : [];
    case 'TSTypeLiteral':
      return node.members.filter((member: Node) => !isTag(member));
    case 'TSUnionType':
    case 'TSIntersectionType':
      return node.types;
    case 'VariableDeclarator':
      return node.id.typeAnnotation ? [node.id.typeAnnotation] : [node.init];
    case 'TSAsExpression':
    case 'TSSatisfiesExpression':
      return [node.expression];
    case 'ObjectExpression':
      return node.properties.filter((property: Node) => property.type === 'Property');
    default:
      return [];
  }
}

const isPublic = (member: Node): boolean =>
  member.key?.type !== 'PrivateIdentifier' &&
  (member.accessibility ?? 'public') === 'public' &&
  member.type !== 'StaticBlock';

/** What tells the arms of a union apart says itself what it is: `readonly kind: 'file'`. */
const isTag = ({ type, typeAnnotation }: Node): boolean =>
  type === 'TSPropertySignature' && typeAnnotation?.typeAnnotation.type === 'TSLiteralType';

/** A member's name, if it is one. */
function keyOf({ type, key, computed }: Node): string | undefined {
  if (key === undefined || type === 'TSMappedType') return undefined;
  if (!computed) return key.name ?? key.value;
  return `[${key.object?.name}.${key.property?.name}]`;
}
