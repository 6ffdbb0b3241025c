// The rules of the bundled shop, with what a rules file can say about such a service. A text, because tsc does not copy YAML.

export const demoRules = `# Which requests change state, and in what order. First match wins. Try: gateway explain POST /accounts/1/deposits
version: 1
rules:
  # Ids are counted, so this one waits for everything before it: no \`order\`.
  - name: open-account
    match: POST /accounts
    mode: replicate
    compare: { headers: [location], body: json }

  # Deposits to different accounts do not wait for each other. With an Idempotency-Key a repeated one is executed once.
  - name: deposit
    match: POST /accounts/:id/deposits
    mode: replicate
    order: ["account:{path.id}"]
    # Should a copy die in the middle of one, nobody can tell whether it was executed there: that copy is held until a person says so
    # (\`gateway replica unknown\`). A service that can be asked has a \`probe:\` here instead.
    compare: { body: json }

  # Two accounts, and so two keys: it waits for what came before on either.
  - name: transfer
    match: POST /transfers
    mode: replicate
    order: ["account:{body.from}", "account:{body.to}"]
    respond: majority
    compare: { body: json }

  # PUT and DELETE may be repeated: the second time changes nothing.
  - name: change-account
    match: { method: [PUT, DELETE], path: /accounts/:id }
    mode: replicate
    order: ["account:{path.id}"]

  - name: order
    match: POST /orders
    mode: replicate
    compare: { headers: [location], body: json }

  - name: change-order
    match: PUT /orders/:id
    mode: replicate
    order: ["order:{path.id}"]

  # Reads go to one copy. This one sees everything that was acknowledged to anyone before.
  - name: account
    match: GET /accounts/:id
    mode: only-once
    consistency: linearizable

  # This one may be a moment behind what others did, never behind what the same client has seen.
  - name: lists
    match: { method: GET, path: /accounts }
    mode: only-once
    consistency: session

  - name: health
    match: GET /health
    mode: only-once
    consistency: any
`;
