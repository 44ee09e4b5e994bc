"""What the components on a core device share: IPC, uploads, the outbox, the model store."""
